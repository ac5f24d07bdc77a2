/* symbols.c: finds the functions of stable_abi.h in the libtorch_cpu that is already loaded. */
#define _GNU_SOURCE /* RTLD_NOLOAD */
#include <dlfcn.h>
#include <stdio.h>

#include "stable_abi.h"

hex_torch_table hex_torch;

static const struct {
    const char *name;
    size_t offset; /* of the pointer in hex_torch_table */
} symbols[] = {
#define HEX_SYMBOL(result, name, parameters) {#name, offsetof(hex_torch_table, name)},
    HEX_TORCH_FUNCTIONS(HEX_SYMBOL)
#undef HEX_SYMBOL
};

const char *hex_torch_find(void) {
    static char message[256];
    if (hex_torch.aoti_torch_abi_version)
        return NULL;
    void *library = dlopen("libtorch_cpu.so", RTLD_NOLOAD | RTLD_LAZY);
    if (!library)
        return "libtorch_cpu is not loaded in this process: import torch (2.10 or newer) before hexssl._C";
    hex_torch_table found;
    for (size_t i = 0; i < sizeof symbols / sizeof symbols[0]; i++) {
        void *address = dlsym(library, symbols[i].name);
        if (!address) {
            uint64_t (*version)(void);
            *(void **)&version = dlsym(library, "aoti_torch_abi_version");
            uint64_t abi = version ? version() : 0;
            snprintf(message, sizeof message,
                     "torch has no function %s in its stable ABI (version found: %d.%d); hexssl needs torch 2.10 or "
                     "newer",
                     symbols[i].name, (int)(abi >> 56), (int)(abi >> 48 & 255));
            dlclose(library);
            return message;
        }
        *(void **)((char *)&found + symbols[i].offset) = address;
    }
    hex_torch = found;
    return NULL; /* the library handle is kept: the functions must stay */
}
