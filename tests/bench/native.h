/*
 * What both ends of the native protocol need: packets of frames, and the
 * descriptors that come with them (examples/PROTOCOL.md).
 */
#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

enum { HELLO = 1, HANDOFF, TAKEN, REFUSED, DONE, RETURN, PING = 10, PONG };

enum {
	DESCRIPTORS_MAX = 253,
	HEADER_BYTES = 16,
	PACKET_BYTES_MAX = 128 * 1024,
};

struct frame {
	uint8_t magic, version, type, flags;
	uint32_t payload_len; /* little-endian, as this program is */
	uint64_t id;
};

struct packet {
	char bytes[PACKET_BYTES_MAX + 1];
	size_t len;
	int descriptors[DESCRIPTORS_MAX];
	size_t descriptors_count;
};

union control {
	struct cmsghdr header;
	/* Room for as many as one packet can carry: with less, descriptors leak. */
	char room[CMSG_SPACE(DESCRIPTORS_MAX * sizeof(int))];
};

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static struct frame frame_of(int type, uint64_t id, size_t payload_len)
{
	struct frame f = { 0xB7, 1, (uint8_t)type, 0, (uint32_t)payload_len, id };

	return f;
}

/* Sends a packet, whole. Where there is no room for it the caller waits: it has
 * nobody else to send anything to. Returns -1 if the other side is gone. */
static int packet_send(int channel, struct iovec *parts, size_t parts_count, const int *descriptors, size_t count)
{
	union control control;
	struct msghdr m = { .msg_iov = parts, .msg_iovlen = parts_count };
	struct pollfd room = { .fd = channel, .events = POLLOUT };

	if (count > 0) {
		m.msg_control = &control;
		m.msg_controllen = CMSG_SPACE(count * sizeof(int));
		control.header.cmsg_level = SOL_SOCKET;
		control.header.cmsg_type = SCM_RIGHTS;
		control.header.cmsg_len = CMSG_LEN(count * sizeof(int));
		memcpy(CMSG_DATA(&control.header), descriptors, count * sizeof(int));
	}
	while (sendmsg(channel, &m, MSG_NOSIGNAL | MSG_DONTWAIT) < 0) {
		if (errno != EAGAIN)
			return -1;
		poll(&room, 1, -1);
	}
	return 0;
}

/* Receives a packet. Returns 0 when there is none at the moment, -1 at the channel's end. */
static int packet_receive(int channel, struct packet *p)
{
	union control control;
	struct iovec bytes = { p->bytes, sizeof p->bytes };
	struct msghdr m = { .msg_iov = &bytes, .msg_iovlen = 1,
		.msg_control = &control, .msg_controllen = sizeof control };
	ssize_t n = recvmsg(channel, &m, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
	struct cmsghdr *c;

	if (n <= 0)
		return n < 0 && errno == EAGAIN ? 0 : -1;
	if (m.msg_flags & (MSG_TRUNC | MSG_CTRUNC))
		die("a packet that was cut");
	p->len = (size_t)n;
	p->descriptors_count = 0;
	c = CMSG_FIRSTHDR(&m);
	if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS) {
		p->descriptors_count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		memcpy(p->descriptors, CMSG_DATA(c), p->descriptors_count * sizeof(int));
	}
	return 1;
}

/* The frame at `*at`, behind which `*at` is then; its payload stands in front of that. Returns 0 at the packet's end. */
static int next_frame(const struct packet *p, size_t *at, struct frame *f)
{
	if (*at == p->len)
		return 0;
	if (p->len - *at < HEADER_BYTES)
		die("a packet that is too short");
	memcpy(f, p->bytes + *at, HEADER_BYTES);
	*at += HEADER_BYTES;
	if (f->magic != 0xB7 || f->version != 1 || f->payload_len > p->len - *at)
		die("no frame of this protocol");
	*at += f->payload_len;
	return 1;
}

/* Says HELLO, at once. */
static void hello_send(int channel, const char *name, int in_flight_max)
{
	char text[256];
	int len = snprintf(text, sizeof text, "{\"versions\":[1],\"name\":\"%s\",\"pid\":%d,\"in_flight_max\":%d}",
	    name, getpid(), in_flight_max);
	struct frame f = frame_of(HELLO, 0, (size_t)len);
	struct iovec parts[] = { { &f, sizeof f }, { text, (size_t)len } };

	if (packet_send(channel, parts, 2, NULL, 0) < 0)
		die("HELLO");
}

static void pong_send(int channel, char *payload, size_t len)
{
	struct frame f = frame_of(PONG, 0, len);
	struct iovec parts[] = { { &f, sizeof f }, { payload, len } };

	packet_send(channel, parts, 2, NULL, 0);
}
