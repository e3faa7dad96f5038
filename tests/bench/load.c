/* Clients that ask one time after the other, several at once.
 *
 *   load [-u USER] [-c CLIENTS] [-d SECONDS] COMMAND...
 *
 * Each of CLIENTS processes starts COMMAND again and again, until SECONDS are over; @ in an
 * argument stands for the number of the client. Prints: how often it ended with 0, how often
 * otherwise, the seconds until all were done. */
#include "common.h"
#include <fcntl.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/wait.h>

extern char **environ;
struct counts { long good, bad; };

static void work(char **argv, double until, struct counts *counts)
{
	posix_spawn_file_actions_t actions;
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
	posix_spawn_file_actions_addopen(&actions, 1, "/dev/null", O_WRONLY, 0);
	while (now() < until) {
		pid_t child;
		int status;
		if (posix_spawnp(&child, argv[0], &actions, NULL, argv, environ)
		    || waitpid(child, &status, 0) != child || status)
			counts->bad++;
		else
			counts->good++;
	}
	_exit(0);
}

/* The argument with every @ replaced. */
static char *numbered(const char *argument, int number)
{
	char *text = malloc(strlen(argument) * 12 + 1), *end = text;
	for (; *argument; argument++) {
		if (*argument == '@')
			end += sprintf(end, "%d", number);
		else
			*end++ = *argument;
	}
	*end = 0;
	return text;
}

int main(int argc, char **argv)
{
	const char *user = NULL;
	int clients = 1, option;
	double seconds = 3;
	while ((option = getopt(argc, argv, "+u:c:d:")) != -1) {
		switch (option) {
		case 'u': user = optarg; break;
		case 'c': clients = atoi(optarg); break;
		case 'd': seconds = atof(optarg); break;
		default: return 2;
		}
	}
	if (optind == argc || clients < 1)
		die("usage: load [-u USER] [-c CLIENTS] [-d SECONDS] COMMAND...");
	if (user)
		become(user);
	struct counts *counts = mmap(NULL, clients * sizeof *counts, PROT_READ | PROT_WRITE,
				     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (counts == MAP_FAILED)
		die("no memory");
	double began = now();
	for (int c = 0; c < clients; c++) {
		pid_t child = fork();
		if (child < 0)
			die("cannot fork: %s", strerror(errno));
		if (child == 0) {
			for (int i = optind; i < argc; i++)
				argv[i] = numbered(argv[i], c);
			work(argv + optind, began + seconds, counts + c);
		}
	}
	while (wait(NULL) > 0 || errno == EINTR)
		;
	double took = now() - began;
	struct counts sum = { 0, 0 };
	for (int c = 0; c < clients; c++) {
		sum.good += counts[c].good;
		sum.bad += counts[c].bad;
	}
	printf("%ld %ld %.3f\n", sum.good, sum.bad, took);
	return 0;
}
