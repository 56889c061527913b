#pragma once

#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

namespace case_wtal {

// Throws, naming the op, if the launch just made was refused. Does not wait: a fault while the kernel runs shows up
// where torch next synchronises, as for torch's own kernels.
inline void check_launch(const char* op) {
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string(op) + ": " + cudaGetErrorName(error) + ": " + cudaGetErrorString(error));
  }
}

}  // namespace case_wtal
