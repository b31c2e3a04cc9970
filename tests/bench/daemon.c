/*
 * The daemon behind every gateway that is measured: takes clients by
 * SCM_RIGHTS on a SOCK_SEQPACKET listener, one connection per handoff, and
 * gives each the same small answer.
 *
 * usage: daemon -u SOCKET
 *
 * Says `ready` on standard output when it listens. USR1: prints one line of
 * JSON, how many it answered and how many it could not.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { DESCRIPTORS_MAX = 253, MESSAGE_BYTES_MAX = 128 * 1024 };

static const char answer[] =
	"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 13\r\n"
	"Connection: close\r\n\r\nHello, world\n";

static int epoll;
static unsigned long answered, failed;

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static void watch(int fd)
{
	struct epoll_event e = { .events = EPOLLIN, .data.fd = fd };

	if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &e) < 0)
		die("epoll_ctl");
}

/* The gateway took the head, so nothing of the client is unread and close()
 * ends the answer by FIN. The answer is far smaller than a send buffer. */
static void serve(int client)
{
	if (send(client, answer, sizeof answer - 1, MSG_NOSIGNAL) == sizeof answer - 1)
		answered++;
	else
		failed++;
	close(client);
}

/* Takes the one message of a connection. Returns -1 if it has not come yet. */
static int receive(int connection)
{
	static char bytes[MESSAGE_BYTES_MAX];
	/* Room for as many as one message can carry: with less, descriptors leak. */
	static union {
		struct cmsghdr header;
		char room[CMSG_SPACE(DESCRIPTORS_MAX * sizeof(int))];
	} control;
	struct iovec iov = { bytes, sizeof bytes };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1,
		.msg_control = &control, .msg_controllen = sizeof control };
	struct cmsghdr *c;
	int clients[DESCRIPTORS_MAX];
	size_t n = 0;

	if (recvmsg(connection, &m, MSG_CMSG_CLOEXEC) < 0)
		return errno == EAGAIN ? -1 : 0;
	c = CMSG_FIRSTHDR(&m);
	if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS) {
		n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		memcpy(clients, CMSG_DATA(c), n * sizeof(int));
	}
	if (n == 1) {
		serve(clients[0]);
		return 0;
	}
	for (size_t i = 0; i < n; i++)
		close(clients[i]);
	failed++;
	return 0;
}

static int listen_on(const char *path)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	int s = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	snprintf(a.sun_path, sizeof a.sun_path, "%s", path);
	if (bind(s, (struct sockaddr *)&a, sizeof a) < 0 || listen(s, 4096) < 0)
		die(path);
	return s;
}

int main(int argc, char **argv)
{
	struct epoll_event events[256];
	struct signalfd_siginfo info;
	sigset_t report;
	int listener, signals;

	if (argc != 3 || strcmp(argv[1], "-u") != 0)
		return 2;
	sigemptyset(&report);
	sigaddset(&report, SIGUSR1);
	sigprocmask(SIG_BLOCK, &report, NULL);
	epoll = epoll_create1(EPOLL_CLOEXEC);
	watch(signals = signalfd(-1, &report, SFD_CLOEXEC));
	watch(listener = listen_on(argv[2]));
	puts("ready");
	fflush(stdout);
	for (;;) {
		int n = epoll_wait(epoll, events, 256, -1);

		for (int i = 0; i < n; i++) {
			int fd = events[i].data.fd, c;

			if (fd == signals && read(signals, &info, sizeof info) > 0) {
				printf("{\"answered\": %lu, \"failed\": %lu}\n", answered, failed);
				fflush(stdout);
			} else if (fd == listener) {
				for (int k = 0; k < 64 && (c = accept4(listener, NULL, NULL,
				    SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0; k++) {
					/* The message mostly comes with the connection. */
					if (receive(c) == 0)
						close(c);
					else
						watch(c);
				}
			} else if (receive(fd) == 0) {
				close(fd);
			}
		}
	}
}
