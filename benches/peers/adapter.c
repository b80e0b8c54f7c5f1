/* The general allocator behind the pair of functions that PyTorch's pluggable allocators have, so that one loop measures
   Kavern beside other allocators. A stream is registered when it is first seen. */
#include <kavern.h>
#include <stdio.h>
#include <stdlib.h>

static kavern_manager *manager;

static void complain(const char *what) {
    char text[1100] = "";
    kavern_last_error(text, sizeof text, NULL);
    fprintf(stderr, "%s: %s\n", what, text);
}

int kvb_init(const char *option) {
    kavern_manager_config config;
    if (kavern_manager_config_init(&config, sizeof config) != KAVERN_OK) return 1;
    config.device = option != NULL && option[0] != '\0' ? option : "cuda:0";
    if (kavern_manager_create(&config, &manager) == KAVERN_OK) return 0;
    complain("kavern_manager_create");
    return 1;
}

void *kvb_alloc(size_t bytes, int device, void *stream) {
    uint64_t address = 0;
    kavern_status status = kavern_alloc(manager, bytes, 0, stream, 0, &address);
    (void)device;
    if (status == KAVERN_ERR_INVALID_HANDLE) {
        kavern_status known = kavern_manager_stream_register(manager, stream);
        if (known == KAVERN_OK || known == KAVERN_ERR_ALREADY_EXISTS)
            status = kavern_alloc(manager, bytes, 0, stream, 0, &address);
    }
    if (status != KAVERN_OK) complain("kavern_alloc");
    return (void *)(uintptr_t)address;
}

void kvb_free(void *address, size_t bytes, int device, void *stream) {
    (void)bytes;
    (void)device;
    if (kavern_free(manager, (uint64_t)(uintptr_t)address, stream) != KAVERN_OK) complain("kavern_free");
}
