/* The other end of the lower bound: client SOCKET asks the broker and exits as it answers. */
#include "common.h"
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

int main(int argc, char **argv)
{
	if (argc != 2)
		die("usage: client SOCKET");
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	strncpy(address.sun_path, argv[1], sizeof address.sun_path - 1);
	int status, broker = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (broker < 0 || connect(broker, (struct sockaddr *)&address, sizeof address)
	    || write(broker, "RUN true\n", 9) != 9
	    || read(broker, &status, sizeof status) != sizeof status)
		die("cannot ask: %s", strerror(errno));
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
