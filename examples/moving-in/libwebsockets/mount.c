/* A server as libwebsockets' users have it: one mount, and behind it an application that listens on a Unix socket.
 *
 *     mount PORT MOUNTPOINT ORIGIN          mount 7681 /app +/run/app.sock:/inside
 *
 * As JSON, for lwsws: "mounts": [{ "mountpoint": "/app", "origin": "http://+/run/app.sock:/inside" }]
 */
#include <libwebsockets.h>
#include <stdlib.h>
#include <string.h>

int main(int argc, char **argv)
{
    struct lws_http_mount mount;
    struct lws_context_creation_info info;
    struct lws_context *context;

    if (argc != 4)
        return 2;
    memset(&mount, 0, sizeof mount);
    mount.mountpoint = argv[2];
    mount.mountpoint_len = (unsigned char)strlen(argv[2]);
    mount.origin = argv[3];
    mount.origin_protocol = LWSMPRO_HTTP;

    memset(&info, 0, sizeof info);
    info.iface = "127.0.0.1";
    info.port = atoi(argv[1]);
    info.mounts = &mount;
    context = lws_create_context(&info);
    if (context == NULL)
        return 1;
    while (lws_service(context, 0) >= 0)
        ;
    lws_context_destroy(context);
    return 0;
}
