void tributary_kernels_present(void);
