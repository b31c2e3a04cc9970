/* Lets in whoever has the token, and hands them over to the target `chat`. */
#define BATON_IMPLEMENTATION /* in one file of a policy; the others include the header alone */
#include "baton.h"

static baton_string setting(baton_string key, baton_string usual)
{
    baton_option_string value = baton_config_get(key);
    return value.is_some ? value.value : usual;
}

static baton_decision refuse(uint16_t status, baton_bytes body)
{
    baton_decision decision = baton_decide_respond(status, body);
    baton_add_header(&decision, BATON_STR("content-type"), BATON_BYTES("text/plain; charset=utf-8"));
    return decision;
}

static baton_decision decide(void)
{
    baton_string path = baton_request_path();
    if (!baton_starts_with(path, BATON_STR("/v1/"))) return baton_decide_pass();

    /* Strings are pointer and length: nothing stands behind the last byte, so nothing of <string.h> fits them. */
    baton_option_bytes field = baton_request_header(BATON_STR("authorization"));
    baton_string scheme = BATON_STR("bearer ");
    if (!field.is_some || !baton_starts_with_any_case(baton_string_of(field.value), scheme)) {
        baton_decision decision = refuse(401, BATON_BYTES("a bearer token is required\n"));
        baton_add_header(&decision, BATON_STR("www-authenticate"), BATON_BYTES("Bearer"));
        return decision;
    }

    baton_string token = baton_from(baton_string_of(field.value), scheme.len);
    if (!baton_equal(token, setting(BATON_STR("token"), BATON_STR("open-sesame")))) {
        /* Never the token itself: logs are read by more people than secrets are for. */
        baton_tuple_string_string said = {BATON_STR("path"), path};
        baton_log_write(BATON_LEVEL_INFO, BATON_STR("refused a token"), (baton_list_tuple_string_string){&said, 1});
        return refuse(403, BATON_BYTES("this token opens nothing here\n"));
    }

    baton_string user = setting(BATON_STR("user"), BATON_STR("alice"));
    baton_text data = {0};
    baton_add(&data, BATON_STR("{\"user\":"));
    baton_add_json(&data, user); /* with its quotes, and escaped: a name may hold anything */
    baton_add(&data, BATON_STR(",\"path\":"));
    baton_add_json(&data, path);
    baton_add(&data, BATON_STR("}"));
    /* What a decision points at must outlive the hook: text from baton_add does, an array on the stack does not. */
    baton_decision decision = baton_decide_handoff(BATON_STR("chat"), baton_text_bytes(&data));
    baton_annotate(&decision, BATON_STR("user"), user);
    return decision;
}

BATON_ON_REQUEST(decide)
