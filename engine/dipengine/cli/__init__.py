"""The command line: `dipengine <task> IN -o OUT`, `dipengine doctor`, `dipengine bench iteration`."""
