/* A responder that complains before, in and behind its answer, and ends with a status of its own. */
#include <fcgi_stdio.h>

int main(void) {
    while (FCGI_Accept() >= 0) {
        fprintf(stderr, "before\nin two ");
        fflush(stderr);
        printf("Status: 500 Out of luck\r\n\r\nbody");
        fprintf(stderr, "pieces\r\n");
        fflush(stdout);
        fprintf(stderr, "behind");
        FCGI_SetExitStatus(3);
    }
    return 0;
}
