// Uses what a devel flavour is for: a kernel of one's own, CUB's headers and cuBLAS.
#include <cstdio>
#include <cublas_v2.h>
#include <cub/cub.cuh>

__global__ void fill(float *values, int count) {
    int index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index < count) values[index] = 1.0f;
}

int main() {
    const int count = 1024;
    float *values = nullptr, *sum = nullptr, by_cub = 0, by_cublas = 0;
    cudaError_t error = cudaMalloc(&values, count * sizeof(float));
    if (error != cudaSuccess) {
        std::printf("%s\n", cudaGetErrorName(error));
        return 3;
    }
    cudaMalloc(&sum, sizeof(float));
    fill<<<4, 256>>>(values, count);
    void *scratch = nullptr;
    size_t bytes = 0;
    cub::DeviceReduce::Sum(scratch, bytes, values, sum, count);
    cudaMalloc(&scratch, bytes);
    cub::DeviceReduce::Sum(scratch, bytes, values, sum, count);
    cudaMemcpy(&by_cub, sum, sizeof(float), cudaMemcpyDeviceToHost);
    cublasHandle_t handle;
    cublasCreate(&handle);
    cublasSasum(handle, count, values, 1, &by_cublas);
    std::printf("%g %g\n", by_cub, by_cublas);
    return by_cub == count && by_cublas == count ? 0 : 1;
}
