/* What the policy is told once, as JSON:
 *
 *     {"target": "chat", "realm": "demo", "tokens": {"<SHA-256 of a token, in hex>": "alice"}}
 *
 * Tokens stand there as digests, so that neither the configuration nor its backups hold anything that opens a door.
 * That is safe for tokens that a program made at random; words that people chose can be guessed from their digest. */
#ifndef CONFIG_H
#define CONFIG_H

#include "sha256.h"

typedef struct {
    sha256_digest digest;
    baton_string user;
} config_token;

typedef struct {
    baton_string target;
    /* Names the protected space in challenges (RFC 9110 11.5). */
    baton_string realm;
    config_token *tokens;
    uint32_t token_count;
} config;

/* All faults, not only the first: whoever has to mend it wants to go there once. None: the configuration was read. */
baton_list_string config_read(baton_string text, config *config);

#endif
