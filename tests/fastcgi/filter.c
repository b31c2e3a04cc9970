/* A filter that makes its data upper case, between what it was told and what it was sent. */
#include <ctype.h>
#include <fcgi_stdio.h>
#include <stdlib.h>

int main(void) {
    while (FCGI_Accept() >= 0) {
        int byte, sent = 0;
        while (getchar() != EOF)
            sent++;
        printf("Content-Type: text/plain\r\nX-Modified: %s\r\n\r\n", getenv("FCGI_DATA_LAST_MOD"));
        if (FCGI_StartFilterData() < 0) {
            printf("no data");
            continue;
        }
        while ((byte = getchar()) != EOF)
            putchar(toupper(byte));
        printf(" (%s bytes, %d in front)", getenv("FCGI_DATA_LENGTH"), sent);
    }
    return 0;
}
