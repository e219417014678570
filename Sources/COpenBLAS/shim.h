// The OpenBLAS calls that Tributary makes: CBLAS, thread control, and LAPACK by its Fortran names
// (Debian's libopenblas exports no LAPACKE).
#ifndef TRIBUTARY_OPENBLAS_SHIM_H
#define TRIBUTARY_OPENBLAS_SHIM_H
#include <cblas.h>

char *openblas_get_config(void);
char *openblas_get_corename(void);

// Singular value decomposition of a general matrix (divide and conquer), column-major.
void sgesdd_(const char *jobz, const int *m, const int *n, float *a, const int *lda, float *s, float *u,
             const int *ldu, float *vt, const int *ldvt, float *work, const int *lwork, int *iwork, int *info);
void dgesdd_(const char *jobz, const int *m, const int *n, double *a, const int *lda, double *s, double *u,
             const int *ldu, double *vt, const int *ldvt, double *work, const int *lwork, int *iwork, int *info);
// QR factorisation and the orthonormal factor, column-major.
void sgeqrf_(const int *m, const int *n, float *a, const int *lda, float *tau, float *work, const int *lwork, int *info);
void sorgqr_(const int *m, const int *n, const int *k, float *a, const int *lda, const float *tau, float *work,
             const int *lwork, int *info);
void dgeqrf_(const int *m, const int *n, double *a, const int *lda, double *tau, double *work, const int *lwork, int *info);
void dorgqr_(const int *m, const int *n, const int *k, double *a, const int *lda, const double *tau, double *work,
             const int *lwork, int *info);
#endif
