"""Many fits: jobs, the ledger of what became of them, the scheduler, and the processes that run them."""
