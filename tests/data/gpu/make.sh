#!/bin/sh
# Makes the libraries beside it: nvcc 13.5.37 (wheels nvidia-cuda-nvcc, -nvvm, -crt, -runtime, -cccl), gcc 12, no CUDA runtime.
set -e
nvcc -cudart none -O1 -Xcompiler -fPIC -shared -o gpu.so gpu.cu \
  -gencode arch=compute_75,code=sm_75 -gencode "arch=compute_80,code=[sm_80,compute_80]" \
  -gencode "arch=compute_90a,code=[sm_90a,compute_90a]" -gencode "arch=compute_100f,code=[sm_100f,compute_100f]" \
  -gencode arch=compute_103a,code=sm_103a -gencode "arch=compute_120,code=[sm_120,compute_120]" \
  -gencode arch=compute_90,code=lto_90
nvcc -cudart none -Xcompiler -fPIC -shared -gencode arch=compute_75,code=sm_75 -o none.so none.cu
nvcc -cudart none -Xcompiler -fPIC -shared -rdc=true -gencode arch=compute_90a,code=sm_90a -o rdc.so gpu.cu
strip gpu.so none.so rdc.so
gzip -9 -n gpu.so none.so rdc.so
