/* Times commands side by side.
 *
 *   timer [-u USER] [-w WARMUP] [-n ROUNDS] [-p] NAME COMMAND... [::: NAME COMMAND...]...
 *
 * Every round starts each command once and waits for it, so that whatever slows the machine down
 * for a while slows all of them; in another order each time, since each finds the caches as the
 * one before has left them. Standard input and output are /dev/null; with -p
 * standard input is a pipe that nothing is written to, as under ssh or CI. Prints for each
 * command: NAME, then in microseconds: least, median, 90 %, 99 %, mean. A command that does not
 * exit with 0 ends it all: the time of a failure says nothing. */
#include "common.h"
#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>

#define MOST 32
extern char **environ;

static int ascending(const void *a, const void *b)
{
	double d = *(const double *)a - *(const double *)b;
	return (d > 0) - (d < 0);
}

static double once(char **argv, const posix_spawn_file_actions_t *actions)
{
	double began = now();
	pid_t child;
	int status, failed = posix_spawnp(&child, argv[0], actions, NULL, argv, environ);
	if (failed)
		die("cannot start %s: %s", argv[0], strerror(failed));
	if (waitpid(child, &status, 0) != child)
		die("cannot wait for %s", argv[0]);
	double took = now() - began;
	if (status)
		die("%s ended with wait status %#x", argv[0], status);
	return took;
}

int main(int argc, char **argv)
{
	const char *user = NULL;
	int warmup = 20, rounds = 300, piped = 0, option;
	while ((option = getopt(argc, argv, "+u:w:n:p")) != -1) {
		switch (option) {
		case 'u': user = optarg; break;
		case 'w': warmup = atoi(optarg); break;
		case 'n': rounds = atoi(optarg); break;
		case 'p': piped = 1; break;
		default: return 2;
		}
	}
	char **commands[MOST];
	double *times[MOST];
	int count = 0, at = optind;
	while (at < argc) {
		if (count == MOST || at + 1 >= argc)
			die("NAME COMMAND... [::: NAME COMMAND...]...");
		times[count] = calloc(rounds, sizeof(double));
		commands[count++] = argv + at;
		while (at < argc && strcmp(argv[at], ":::"))
			at++;
		if (at < argc)
			argv[at++] = NULL;
	}
	if (!count || rounds < 1)
		die("NAME COMMAND... [::: NAME COMMAND...]...");
	if (user)
		become(user);

	posix_spawn_file_actions_t actions;
	posix_spawn_file_actions_init(&actions);
	int ends[2];
	if (piped) {
		if (pipe2(ends, O_CLOEXEC))
			die("no pipe: %s", strerror(errno));
		posix_spawn_file_actions_adddup2(&actions, ends[0], 0);
	} else {
		posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
	}
	posix_spawn_file_actions_addopen(&actions, 1, "/dev/null", O_WRONLY, 0);

	int order[MOST];
	for (int c = 0; c < count; c++)
		order[c] = c;
	srandom(1);
	for (int round = -warmup; round < rounds; round++) {
		for (int c = count - 1; c > 0; c--) {
			int other = random() % (c + 1), kept = order[c];
			order[c] = order[other];
			order[other] = kept;
		}
		for (int i = 0; i < count; i++) {
			double took = once(commands[order[i]] + 1, &actions);
			if (round >= 0)
				times[order[i]][round] = took;
		}
	}
	for (int c = 0; c < count; c++) {
		double sum = 0, *t = times[c];
		for (int i = 0; i < rounds; i++)
			sum += t[i];
		qsort(t, rounds, sizeof *t, ascending);
		double median = rounds % 2 ? t[rounds / 2] : (t[rounds / 2 - 1] + t[rounds / 2]) / 2;
		printf("%s %.1f %.1f %.1f %.1f %.1f\n", commands[c][0], t[0] * 1e6, median * 1e6,
		       t[rounds * 9 / 10] * 1e6, t[rounds * 99 / 100] * 1e6, sum / rounds * 1e6);
	}
	return 0;
}
