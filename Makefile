# make demo    create the environment, build, restore a photograph, leave demo/out/before_after.png
# make test    create the environment, build, run every test that needs no GPU and less than five minutes
# make test-emulator   the CUDA kernels on this CPU, and what nvcc makes of them where there is one; needs no network
# make gpu-acceptance  build for this machine's GPU, test, look for races and stray accesses, time: nine minutes of it a call, and the
#              next one goes on; PART=name (see LIST=1), SECONDS=540, AGAIN=1: what failed once more, OUT=folder: what comes of it, behind
#              every step; RESUME=archive: that came of another call, of the same sources. Needs a GPU, its driver, the CUDA
#              toolkit (12.8 or newer) and CMake; no network where $(PYTHON) has torch with CUDA, numpy, pybind11 and pytest
# make clean   remove the environment, builds and outputs
#
# PYTHON       interpreter that creates the environment (3.11 or newer)
# TORCH_INDEX  package index for PyTorch; by default its CPU wheels where there is no GPU, else the default index
# VENV         folder of the environment
# TESTERS      processes that share the tests
# GPU_VENV     folder of that of gpu-acceptance, where $(PYTHON) lacks something for it

PYTHON ?= python3
VENV ?= .venv
TESTERS ?= 2
GPU_VENV ?= .venv-gpu
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
SOURCES := $(shell find csrc bindings cmake -type f 2>/dev/null) CMakeLists.txt setup.py pyproject.toml engine/dipengine/_version.py
TORCH_VERSION := $(shell sed -n 's/^torch==//p' constraints.txt)

.PHONY: demo test test-emulator gpu-acceptance env clean
.DELETE_ON_ERROR:

demo: $(VENV)/built
	$(BIN)/python demo/run.py

test: $(VENV)/tested-with
	$(BIN)/python -m pytest -n $(TESTERS) --dist loadfile --no-loadscope-reorder tests

# The core is built beside its sources with what the environment has, by no installer: no network, and whatever checkout the
# environment was made in.
test-emulator:
	@test -x $(BIN)/python || $(MAKE) $(VENV)/tested-with
	$(BIN)/python setup.py -q build_ext --inplace
	PYTHONPATH=$(CURDIR)/engine $(BIN)/python -m pytest tests/test_emulator.py tests/test_cuda_*.py tests/test_arrays_on_a_device.py

ACCEPTANCE := bench/gpu_acceptance.py $(if $(PART),--part $(PART)) --seconds $(if $(filter command%,$(origin SECONDS)),$(SECONDS),540) \
  $(if $(AGAIN),--again) $(if $(LIST),--list) $(if $(OUT),--out $(OUT)) $(if $(RESUME),--resume $(RESUME))

gpu-acceptance:
	@if $(PYTHON) bench/gpu_acceptance.py --usable; then $(PYTHON) $(ACCEPTANCE); \
	else $(MAKE) -s $(GPU_VENV)/packages && $(GPU_VENV)/bin/python $(ACCEPTANCE); fi

env: $(VENV)/built

$(VENV)/torch $(GPU_VENV)/torch: constraints.txt tools/install_torch.py
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python tools/install_torch.py $(TORCH_VERSION) $(if $(TORCH_INDEX),--index $(TORCH_INDEX))
	touch $@

# What the engine needs beside itself, ONNX Runtime for GPUs too: the acceptance builds its own.
$(GPU_VENV)/packages: $(GPU_VENV)/torch
	CMAKE_ARGS="-DDIPENGINE_CUDA=OFF -DDIPENGINE_ONLY_ISAS=portable" $(GPU_VENV)/bin/python -m pip --disable-pip-version-check install -q \
	  -c constraints.txt --extra-index-url https://pypi.nvidia.com ".[gpu,test]" tensorrt-cu13
	touch $@

$(VENV)/built: $(VENV)/torch $(SOURCES)
	$(PIP) install -q -c constraints.txt -e ".[cpu]"
	touch $@

# One build serves both: whoever asks for the tests' environment first has the demo's too.
$(VENV)/tested-with: $(VENV)/torch $(SOURCES)
	$(PIP) install -q -c constraints.txt -e ".[cpu,test,astro]"
	touch $(VENV)/built $@

clean:
	rm -rf $(VENV) $(GPU_VENV) build dist demo/out engine/dipengine/_native*.so engine/*.egg-info
