/*
 * native_daemon.c again, as somebody writes it with the library for C
 * (examples/daemon-c): one thread that accepts and answers, and the library's
 * own, which reads the channels.
 *
 * usage: library_daemon -u SOCKET
 */
#define _GNU_SOURCE
#define HANDOFF_IMPLEMENTATION
#include "../../examples/daemon-c/handoff.h"

#include "answer.h"

static unsigned long answered, returned, failed;

static void *report(void *of)
{
	for (int which; sigwait(of, &which) == 0;) {
		printf("{\"answered\": %lu, \"returned\": %lu, \"failed\": %lu}\n", answered, returned, failed);
		fflush(stdout);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	static const struct handoff_field text[] = { { "Content-Type", "text/plain" }, { NULL, NULL } };
	struct handoff_options options = { .in_flight_max = 1000, .socket_mode = 0666 };
	struct handoff_acceptor *acceptor;
	struct handoff *client;
	static sigset_t asked;
	pthread_t reporter;

	if (argc != 3)
		return 2;
	sigemptyset(&asked);
	sigaddset(&asked, SIGUSR1);
	pthread_sigmask(SIG_BLOCK, &asked, NULL);
	if (!(acceptor = handoff_listen(argv[2], &options)) || pthread_create(&reporter, NULL, report, &asked) != 0) {
		perror(argv[2]);
		return 1;
	}
	puts("ready");
	fflush(stdout);
	while ((client = handoff_accept(acceptor))) {
		const char *connection = handoff_header(client, "connection");
		int is_kept = !connection || strcmp(connection, "close") != 0;

		if (handoff_respond(client, 200, text, BODY, sizeof BODY - 1, is_kept) == 0)
			answered++;
		else
			failed++;
		if (is_kept) {
			handoff_give_back(client, 200);
			returned++;
		} else {
			handoff_finish(client, 200, HANDOFF_OK, NULL);
		}
	}
	return 0;
}
