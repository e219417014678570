// The demo's base model, inside the program: a Hugging Face folder's files as bytes.
//
// An 8.1M-parameter Llama with its linear maps in NF4, as `tributary model quantize` wrote them; files/README.md says where it
// comes from.
#ifndef TRIBUTARY_DEMO_MODEL_H
#define TRIBUTARY_DEMO_MODEL_H
#include <stddef.h>

typedef struct {
    const char *name;
    const unsigned char *bytes;
    size_t count;
} tributary_demo_file;

// The file at `index`; its name is NULL behind the last one.
tributary_demo_file tributary_demo_model_file(size_t index);
#endif
