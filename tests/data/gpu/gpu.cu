__global__ void add(float *a, const float *b) { a[threadIdx.x] += b[threadIdx.x]; }
void go(float *a, const float *b) { add<<<1, 32>>>(a, b); }
