/* SHA-256 (FIPS 180-4). */
#ifndef SHA256_H
#define SHA256_H

#include "../baton.h"

#define SHA256_LENGTH 32

typedef struct {
    uint8_t bytes[SHA256_LENGTH];
} sha256_digest;

sha256_digest sha256(baton_bytes message);

#endif
