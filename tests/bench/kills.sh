# The row kills: the daemon is killed again and again while clients run programs. Sourced by run.
# shellcheck shell=bash disable=SC2154

# Everything in files of this name, whichever client wrote it.
gathered() { cat "$work"/"$1"-* 2>/dev/null; }

# Kills the daemon: N times, each time 3 to 99 ms after it was seen to be there, so that some
# hit it before it serves.
kill_loop() {
	local n=0 pid last='' tick shown=$SECONDS
	exec {tick}<> <(:)
	while ((n < kills)); do
		pid=$(daemon_pid) && [[ $pid != "$last" ]] || { read -r -t 0.005 -u $tick; continue; }
		read -r -t "0.$(printf %03d $((RANDOM % 97 + 3)))" -u $tick
		# It may have gone by itself, and its number may be another process's by now.
		[[ $(daemon_pid) == "$pid" ]] && kill -9 "$pid" && ((++n))
		last=$pid
		((SECONDS < shown + 10)) || { say "killed $n times" && shown=$SECONDS; }
	done
	exec {tick}<&-
}

row_kills() {
	local name n client began=$SECONDS
	work=$dir/kills
	mkdir -m 777 "$work"
	install -m 755 "$here"/kills-{job,check,client} "$dir/bin/"
	for name in overlaps begun ended; do install -m 666 /dev/null "$work/$name"; done
	configure < <(
		printf 'log-keep = none\nhistory-keep = none\n'
		for n in {0..3}; do
			printf '[prog-k%d]\ncmd-run = exec %s/bin/kills-job %s k%d\n' "$n" "$dir" "$work" "$n"
			((n == 3)) && echo 'coalesce = no'
		done
	)
	daemon_start info || return
	local clients=()
	for n in {1..6}; do
		as_caller "$dir/bin/kills-client" "$work" "$dir/bin/kills-check" &
		clients+=($!)
	done
	kill_loop
	touch "$work/stop"
	for client in "${clients[@]}"; do wait "$client"; done
	await deployer -t >/dev/null
	# Those that were asked for with --detach may still be at work or waiting.
	over() { ! deployer HISTORY --json | grep -qE '"outcome":"(waiting|running)"'; }
	await over
	kills_verify
	note "kills: $kills times kill -9 of the daemon, 6 clients, $((SECONDS - began)) s"
}

kills_verify() {
	local history=$work/history id outcome code answer wrong=0 checked=0 odd=0
	deployer HISTORY --json >"$history.json"
	sed -E 's/.*"id":([0-9]+),"program".*"outcome":"([a-z-]+)","exit_code":([0-9]+|null).*/\1 \2 \3/' \
		"$history.json" >"$history"
	local requests begun accepted unknown unfinished overlaps lost twice
	requests=$(wc -l <"$history")
	begun=$(wc -l <"$work/begun")
	overlaps=$(wc -l <"$work/overlaps")
	twice=$(sort "$work/begun" | uniq -d | wc -l)
	unfinished=$(grep -cE ' (waiting|running) ' "$history")
	lost=$(grep -cE ' (lost|interrupted) ' "$history")
	# Accepted, but not in the history; begun, but not in it as run to its end.
	accepted=$(gathered accepted | wc -l)
	unknown=$({ gathered accepted && gathered followed; } | sort -u | comm -23 - <(cut -d' ' -f1 "$history" | sort -u) | wc -l)
	unknown=$((unknown + $(sort -u "$work/begun" | comm -23 - <(awk '$2 ~ /^(succeeded|failed)$/ { print $1 }' "$history" | sort -u) | wc -l)))
	while read -r id outcome code; do
		[[ $outcome == succeeded || $outcome == failed ]] || continue
		((++checked))
		((code == (id % 7 ? 0 : 3))) || { ((++odd)) && say "run $id: $outcome, exit code $code"; }
		answer=$(timeout 20 deployer LOGS "$id" 2>&1 | "$here/kills-check" -v expected="$id") ||
			{ ((++wrong)) && say "log of run $id: $answer"; }
	done <"$history"
	local told unstarted
	unstarted=$(grep -c ' not-started ' "$history")
	told=$(gathered wrong | wc -l)
	((told == 0)) || gathered wrong | head -n 5 | while read -r answer; do say "client: $answer"; done
	result "daemon killed -9 under load" "$kills times" "$requests requests, $begun runs" '' ''
	result '  runs of a program side by side' "$overlaps" '' '' 0
	result '  runs that began twice' "$twice" '' '' 0
	result '  requests or runs that are not on record' "$unknown" "$accepted detached, $(gathered followed | wc -l) followed" '' 0
	result '  left waiting or running' "$unfinished" '' '' 0
	result '  outcome lost or interrupted' "$lost" '' '' 0
	result '  accepted, but never started' "$unstarted" '' '' 0
	result '  wrong exit code on record' "$odd" "$checked runs" '' 0
	result '  logs with a byte lost, twice or changed' "$wrong" "$checked logs" '' 0
	result '  clients with a wrong answer' "$told" '' '' 0
	result '  clients turned away (status 125)' "$(gathered refused | wc -l)" '' '' 0
}
