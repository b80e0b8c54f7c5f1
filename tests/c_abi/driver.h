/* Calls of the CUDA driver, found at run time, for the C programs that play an engine on a GPU. Without prototypes:
 * each argument has the exact type that the driver's function takes. */
#ifndef DRIVER_H
#define DRIVER_H

#include "check.h"

#include <dlfcn.h>

typedef int (*driver_call)();
static void *library;

static inline driver_call driver(const char *name) {
    driver_call found = NULL;
    void *symbol = dlsym(library, name);
    CHECK(symbol != NULL);
    memcpy(&found, &symbol, sizeof found);
    return found;
}

#define DRIVER(name, ...)                                                                                         \
    do {                                                                                                          \
        int code_ = driver(#name)(__VA_ARGS__);                                                                   \
        if (code_ != 0) {                                                                                         \
            fprintf(stderr, "code %d\n", code_);                                                                  \
            fail_at(__FILE__, __LINE__, #name);                                                                   \
        }                                                                                                         \
    } while (0)

/* Whether the programs run on a GPU; opens its driver. */
static inline int has_gpu(void) {
    if (strncmp(test_device(), "cuda", 4) != 0) {
        printf("left out: a graph needs KAVERN_TEST_DEVICE=cuda:0\n");
        return 0;
    }
    library = dlopen("libcuda.so.1", RTLD_NOW);
    CHECK(library != NULL);
    return 1;
}

#endif
