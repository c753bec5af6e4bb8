# make demo    create the environment, build, restore a photograph, leave demo/out/before_after.png
# make test    create the environment, build, run every test that needs no GPU and less than five minutes
# make test-emulator   the CUDA kernels on this CPU, and what nvcc makes of them where there is one; needs no network
# make clean   remove the environment, builds and outputs
#
# PYTHON       interpreter that creates the environment (3.11 or newer)
# TORCH_INDEX  package index for PyTorch; by default its CPU wheels where there is no GPU, else the default index
# VENV         folder of the environment

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
SOURCES := $(shell find csrc bindings cmake -type f 2>/dev/null) CMakeLists.txt setup.py pyproject.toml engine/dipengine/_version.py
TORCH_VERSION := $(shell sed -n 's/^torch==//p' constraints.txt)

.PHONY: demo test test-emulator env clean
.DELETE_ON_ERROR:

demo: $(VENV)/built
	$(BIN)/python demo/run.py

test: $(VENV)/tested-with
	$(BIN)/python -m pytest tests

test-emulator: $(VENV)/tested-with
	$(BIN)/python -m pytest tests/test_emulator.py tests/test_cuda_gates.py

env: $(VENV)/built

$(VENV)/torch: constraints.txt tools/install_torch.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python tools/install_torch.py $(TORCH_VERSION) $(if $(TORCH_INDEX),--index $(TORCH_INDEX))
	touch $@

$(VENV)/built: $(VENV)/torch $(SOURCES)
	$(PIP) install -q -c constraints.txt -e ".[cpu]"
	touch $@

# One build serves both: whoever asks for the tests' environment first has the demo's too.
$(VENV)/tested-with: $(VENV)/torch $(SOURCES)
	$(PIP) install -q -c constraints.txt -e ".[cpu,test,astro]"
	touch $(VENV)/built $@

clean:
	rm -rf $(VENV) build dist demo/out engine/dipengine/_native*.so engine/*.egg-info
