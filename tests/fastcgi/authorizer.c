/* An authorizer: `?let=NAME` goes on as NAME, everybody else is sent away. */
#include <fcgi_stdio.h>
#include <stdlib.h>
#include <string.h>

int main(void) {
    while (FCGI_Accept() >= 0) {
        const char *query = getenv("QUERY_STRING");
        const char *role = getenv("FCGI_ROLE");
        if (query != NULL && strncmp(query, "let=", 4) == 0)
            printf("Status: 200 OK\r\nVariable-REMOTE_USER: %s\r\nVariable-Role: %s\r\n\r\nnobody reads this", query + 4, role);
        else
            printf("Status: 403 Forbidden\r\nContent-Type: text/plain\r\nVariable-REMOTE_USER: nobody\r\n\r\ngo away");
    }
    return 0;
}
