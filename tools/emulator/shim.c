/* Loaded before the wheel of bochscpu, globally, so that the dynamic linker finds these names here first.
   1. The wheel wants names of glibc 2.38: the older ones do the same for what it reads.
   2. It always makes a Cannon Lake: make the processor that EMULATOR_CPU names. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

unsigned long long __isoc23_strtoull(const char* text, char** end, int base) { return strtoull(text, end, base); }

int __isoc23_sscanf(const char* text, const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    int n = vsscanf(text, format, arguments);
    va_end(arguments);
    return n;
}

/* create_corei3_cnl_cpuid(BX_CPU_C *) */
void* _Z23create_corei3_cnl_cpuidP8BX_CPU_C(void* cpu) {
    void* wheel = dlopen(getenv("EMULATOR_LIBRARY"), RTLD_NOLOAD | RTLD_LAZY);
    void* (*create)(void*) = (void* (*)(void*))dlsym(wheel, getenv("EMULATOR_CPU"));
    if (!create) {
        fprintf(stderr, "emulator: %s\n", dlerror());
        _Exit(3);
    }
    return create(cpu);
}
