#include "config.h"

#include "json.h"

static void add_fault(baton_list_string *faults, baton_string a, baton_string b, baton_string c)
{
    baton_text text = {0};
    baton_add(&text, a);
    baton_add(&text, b);
    baton_add(&text, c);
    uint32_t at = faults->len;
    baton_string *grown = BATON_GROWN(*faults, baton_string);
    grown[at] = baton_text_string(&text);
    faults->ptr = grown;
}

static const baton_string nothing;

/* Can stand between the quotes of a header field as it is (RFC 9110 5.6.4). */
static bool is_printable(const json_value *value)
{
    if (value->kind != JSON_STRING || value->text.len == 0) return false;
    for (uint32_t i = 0; i < value->text.len; i++) {
        char c = value->text.ptr[i];
        if (c < ' ' || c > '~' || c == '"' || c == '\\') return false;
    }
    return true;
}

static baton_string read_printable(const json_value *object, baton_string key, baton_list_string *faults)
{
    const json_value *value = json_find(object, key);
    if (!value) {
        add_fault(faults, key, BATON_STR(": missing"), nothing);
    } else if (!is_printable(value)) {
        baton_string fault = BATON_STR(": must be a string of printable ASCII without quotes and backslashes");
        add_fault(faults, key, fault, nothing);
    } else {
        return value->text;
    }
    return nothing;
}

/* 64 lower-case hexadecimal digits, as sha256sum prints them. One spelling only: two for one token would be two entries. */
static bool read_digest(baton_string hex, sha256_digest *digest)
{
    if (hex.len != 2 * SHA256_LENGTH) return false;
    for (uint32_t i = 0; i < hex.len; i++) {
        char c = hex.ptr[i];
        int nibble = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
        if (nibble < 0) return false;
        uint8_t *byte = &digest->bytes[i / 2];
        *byte = (uint8_t)(*byte << 4 | nibble);
    }
    return true;
}

static bool is_user(const json_value *value)
{
    if (value->kind != JSON_STRING || value->text.len == 0) return false;
    for (uint32_t i = 0; i < value->text.len; i++) {
        unsigned char c = (unsigned char)value->text.ptr[i];
        if (c < ' ' || c == 0x7f) return false;
    }
    return true;
}

static void read_tokens(const json_value *object, config *config, baton_list_string *faults)
{
    const json_value *entries = json_find(object, BATON_STR("tokens"));
    if (!entries) {
        add_fault(faults, BATON_STR("tokens: missing"), nothing, nothing);
        return;
    }
    uint32_t count = 0;
    for (const json_member *entry = entries->members; entry; entry = entry->next) count++;
    if (count == 0) {
        add_fault(faults, BATON_STR("tokens: must be an object with at least one entry"), nothing, nothing);
        return;
    }
    config->tokens = baton_alloc(count * sizeof(config_token), _Alignof(config_token));
    for (const json_member *entry = entries->members; entry; entry = entry->next) {
        config_token *token = &config->tokens[config->token_count];
        bool good_key = read_digest(entry->name, &token->digest), good_user = is_user(&entry->value);
        /* A key that is no digest may be the token itself, put there by mistake: it is never repeated in a message. */
        if (good_key && good_user) {
            token->user = entry->value.text;
            config->token_count++;
        } else if (good_user) {
            add_fault(
                faults, BATON_STR("tokens: the key of \""), entry->value.text,
                BATON_STR("\" must be 64 lower-case hexadecimal digits, the SHA-256 of the token"));
        } else if (good_key) {
            add_fault(
                faults, BATON_STR("tokens: the user of "), (baton_string){entry->name.ptr, 8},
                BATON_STR("... must be a string without control characters, and not empty"));
        } else {
            baton_string fault = BATON_STR("tokens: an entry has neither a SHA-256 as its key nor a user");
            add_fault(faults, fault, nothing, nothing);
        }
    }
}

static bool is_known(baton_string key)
{
    return baton_equal(key, BATON_STR("target")) || baton_equal(key, BATON_STR("realm"))
        || baton_equal(key, BATON_STR("tokens"));
}

baton_list_string config_read(baton_string text, config *config)
{
    baton_list_string faults = {0};
    json_value value;
    if (!json_read(text, &value)) {
        add_fault(&faults, BATON_STR("config: not JSON"), nothing, nothing);
        return faults;
    }
    if (value.kind != JSON_OBJECT) {
        add_fault(&faults, BATON_STR("config: must be an object"), nothing, nothing);
        return faults;
    }
    config->target = read_printable(&value, BATON_STR("target"), &faults);
    config->realm = read_printable(&value, BATON_STR("realm"), &faults);
    read_tokens(&value, config, &faults);
    for (const json_member *member = value.members; member; member = member->next)
        if (!is_known(member->name)) add_fault(&faults, member->name, BATON_STR(": unknown key"), nothing);
    return faults;
}
