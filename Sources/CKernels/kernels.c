#include "CKernels.h"
void tributary_kernels_present(void) {}
