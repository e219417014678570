// The files, embedded by the compiler (C23 #embed).
#include "DemoModel.h"

#pragma clang diagnostic ignored "-Wc23-extensions"

static const unsigned char config[] = {
#embed "files/config.json"
};
static const unsigned char generation_config[] = {
#embed "files/generation_config.json"
};
static const unsigned char model[] = {
#embed "files/model.safetensors"
};
static const unsigned char tokenizer[] = {
#embed "files/tokenizer.json"
};
static const unsigned char tokenizer_config[] = {
#embed "files/tokenizer_config.json"
};

tributary_demo_file tributary_demo_model_file(size_t index) {
    const tributary_demo_file files[] = {
        {"config.json", config, sizeof config},
        {"generation_config.json", generation_config, sizeof generation_config},
        {"model.safetensors", model, sizeof model},
        {"tokenizer.json", tokenizer, sizeof tokenizer},
        {"tokenizer_config.json", tokenizer_config, sizeof tokenizer_config},
    };
    const size_t count = sizeof files / sizeof files[0];
    return index < count ? files[index] : (tributary_demo_file){NULL, NULL, 0};
}
