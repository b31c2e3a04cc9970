/* Hands a client over when it carries a known bearer token (RFC 6750), and answers 401 when it does not.
 *
 * The token is taken from the `Authorization` field alone. The `access_token` parameter of RFC 6750 2.3 is deliberately
 * not looked at: a query stands in access logs, in browser histories, in `Referer` fields and in the handoff's data, and
 * RFC 9700 4.3.2 forbids it. */
#define BATON_IMPLEMENTATION
#include "../baton.h"

#include "config.h"
#include "sha256.h"

/* Set once by `configure`; every later instance starts from the memory that it left. */
static config known;

static baton_result_requirements_list_string configure(baton_string text)
{
    baton_result_requirements_list_string result = {0};
    baton_list_string faults = config_read(text, &known);
    if (faults.len > 0) {
        result.is_err = true;
        result.of.err = faults;
        return result;
    }
    baton_text count = {0};
    baton_add_number(&count, known.token_count);
    baton_tuple_string_string fields[] = {
        {BATON_STR("realm"), known.realm},
        {BATON_STR("tokens"), baton_text_string(&count)},
    };
    baton_log_write(BATON_LEVEL_INFO, BATON_STR("configured"), (baton_list_tuple_string_string){fields, 2});
    result.of.ok = (baton_requirements){.max_reuse = UINT32_MAX, .targets = {&known.target, 1}};
    /* What was read is used from now on. */
    baton_keep();
    return result;
}

/* Proves the digest with the vectors of FIPS 180-4, one block and two. */
static baton_result_none_string self_test(void)
{
    static const baton_string vectors[] = {
        BATON_STR("abc"), BATON_STR("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
    };
    static const uint8_t starts[][4] = {{0xba, 0x78, 0x16, 0xbf}, {0x24, 0x8d, 0x6a, 0x61}};
    for (int i = 0; i < 2; i++) {
        sha256_digest digest = sha256(baton_bytes_of(vectors[i]));
        for (int at = 0; at < 4; at++) {
            if (digest.bytes[at] != starts[i][at]) {
                baton_text fault = {0};
                baton_add(&fault, BATON_STR("SHA-256 of "));
                baton_add_number(&fault, vectors[i].len);
                baton_add(&fault, BATON_STR(" bytes is wrong"));
                return (baton_result_none_string){.is_err = true, .of.err = baton_text_string(&fault)};
            }
        }
    }
    return (baton_result_none_string){.is_err = false};
}

static baton_decision refuse(uint16_t status, baton_string title, baton_string detail, baton_string error)
{
    /* Never the token. The level is asked for first: an attacker decides how often this runs. */
    if (baton_log_enabled(BATON_LEVEL_DEBUG))
        baton_log_write(BATON_LEVEL_DEBUG, detail, (baton_list_tuple_string_string){0});
    /* Problem details (RFC 9457); the texts are ours and need no quoting. */
    baton_text body = {0}, challenge = {0};
    baton_add(&body, BATON_STR("{\"title\":\""));
    baton_add(&body, title);
    baton_add(&body, BATON_STR("\",\"status\":"));
    baton_add_number(&body, status);
    baton_add(&body, BATON_STR(",\"detail\":\""));
    baton_add(&body, detail);
    baton_add(&body, BATON_STR("\"}"));
    baton_add(&challenge, BATON_STR("Bearer realm=\""));
    baton_add(&challenge, known.realm);
    baton_add(&challenge, BATON_STR("\""));
    baton_add(&challenge, error);
    baton_decision decision = baton_decide_respond(status, baton_text_bytes(&body));
    baton_add_header(&decision, BATON_STR("www-authenticate"), baton_text_bytes(&challenge));
    baton_add_header(&decision, BATON_STR("content-type"), BATON_BYTES("application/problem+json"));
    return decision;
}

/* No credentials at all, or of another scheme: the challenge carries no error then (RFC 6750 3). */
static baton_decision no_token(void)
{
    return refuse(401, BATON_STR("Unauthorized"), BATON_STR("a bearer token is required"), BATON_STR(""));
}

static baton_decision malformed(void)
{
    baton_string detail = BATON_STR("there must be one Authorization field with one bearer token");
    return refuse(400, BATON_STR("Bad Request"), detail, BATON_STR(", error=\"invalid_request\""));
}

static baton_decision unknown_token(void)
{
    baton_string detail = BATON_STR("the bearer token is not valid");
    return refuse(401, BATON_STR("Unauthorized"), detail, BATON_STR(", error=\"invalid_token\""));
}

/* At least one of the characters, then any number of `=`. */
static bool is_b64token(baton_string token)
{
    while (token.len > 0 && token.ptr[token.len - 1] == '=') token.len--;
    for (uint32_t i = 0; i < token.len; i++) {
        char c = token.ptr[i], lower = (char)(c | 0x20);
        bool listed = c == '-' || c == '.' || c == '_' || c == '~' || c == '+' || c == '/';
        if (!listed && !(lower >= 'a' && lower <= 'z') && !(c >= '0' && c <= '9')) return false;
    }
    return token.len > 0;
}

/* Whose token this is; NULL: nobody's. Looks at every entry and at every byte of it, so that the time tells nothing of how
 * near a guess came. */
static const baton_string *user_of(baton_string token)
{
    sha256_digest digest = sha256(baton_bytes_of(token));
    const baton_string *found = NULL;
    for (uint32_t i = 0; i < known.token_count; i++) {
        uint8_t difference = 0;
        for (int at = 0; at < SHA256_LENGTH; at++) difference |= known.tokens[i].digest.bytes[at] ^ digest.bytes[at];
        if (difference == 0) found = &known.tokens[i].user;
    }
    return found;
}

static baton_decision hand_over(baton_string user)
{
    baton_option_string query = baton_request_query();
    baton_text data = {0};
    baton_add(&data, BATON_STR("{\"user\":"));
    baton_add_json(&data, user);
    baton_add(&data, BATON_STR(",\"method\":"));
    baton_add_json(&data, baton_request_method());
    baton_add(&data, BATON_STR(",\"path\":"));
    baton_add_json(&data, baton_request_path());
    baton_add(&data, BATON_STR(",\"query\":"));
    if (query.is_some) baton_add_json(&data, query.value);
    else baton_add(&data, BATON_STR("null"));
    baton_add_char(&data, '}');
    baton_decision decision = baton_decide_handoff(known.target, baton_text_bytes(&data));
    baton_annotate(&decision, BATON_STR("user"), user);
    return decision;
}

static baton_decision decide(void)
{
    baton_list_bytes fields = baton_request_header_all(BATON_STR("authorization"));
    if (fields.len == 0) return no_token();
    /* Which of them counts would be a guess, and the daemon might guess differently. */
    if (fields.len > 1) return malformed();

    /* `Bearer` 1*SP b64token (RFC 6750 2.1); the scheme's case does not matter (RFC 9110 11.1). */
    baton_string value = baton_string_of(fields.ptr[0]), scheme = BATON_STR("bearer");
    if (!baton_starts_with_any_case(value, scheme)) return no_token();
    baton_string token = baton_from(value, scheme.len);
    if (token.len > 0 && token.ptr[0] != ' ') return no_token();
    while (token.len > 0 && token.ptr[0] == ' ') token = baton_from(token, 1);
    if (!is_b64token(token)) return malformed();

    const baton_string *user = user_of(token);
    return user ? hand_over(*user) : unknown_token();
}

BATON_CONFIGURE(configure)
BATON_SELF_TEST(self_test)
BATON_ON_REQUEST(decide)
