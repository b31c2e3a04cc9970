/* A responder with one field of 200,000 bytes, which reads nothing of what it is sent. */
#include <fcgi_stdio.h>

int main(void) {
    while (FCGI_Accept() >= 0) {
        printf("Content-Type: text/plain\nX-Large: ");
        for (int at = 0; at < 200000; at++)
            putchar('a' + at % 26);
        printf("\n\nbody");
    }
    return 0;
}
