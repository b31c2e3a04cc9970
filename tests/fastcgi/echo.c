/* A responder that says what it was told: its environment, an empty line, and the body as it comes. */
#include <fcgi_stdio.h>
#include <stdlib.h>
#include <unistd.h>

extern char **environ;

int main(void) {
    int count = 0;
    while (FCGI_Accept() >= 0) {
        printf("Content-Type: text/plain\r\nX-Count: %d\r\nX-Process: %d\r\n\r\n", ++count, (int)getpid());
        for (char **variable = environ; *variable != NULL; variable++)
            printf("%s\n", *variable);
        printf("\n");
        char buffer[8192];
        size_t bytes;
        while ((bytes = fread(buffer, 1, sizeof buffer, stdin)) > 0)
            fwrite(buffer, 1, bytes, stdout);
    }
    return 0;
}
