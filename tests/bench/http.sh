# The row http: what the gateway costs. Sourced by run.
# shellcheck shell=bash disable=SC2154

gateway_pid() { pgrep -f -- '--role=web'; }

# Proportional memory of daemon and gateway, in KiB.
pss_http() {
	awk '/^Pss:/ { sum += $2 } END { print sum }' "/proc/$(daemon_pid)/smaps_rollup" \
		"/proc/$(gateway_pid)/smaps_rollup"
}

serves() { curl -sf -o /dev/null --unix-socket "$dir/http" http://localhost/healthz; }

# Median of RUN true, in microseconds.
run_true() { timer -u "$caller" -w 20 -n 200 true deployer RUN true | awk '{ print $3 }'; }

row_http() {
	local count=1000 bytes=$((1 << 30)) before after quiet busy began ours theirs
	[[ $quick ]] && count=200 bytes=$((1 << 27))
	configure <<-END
		http-socket = $dir/http
		http-socket-mode = 0666
		clients-per-user = 4096
		log-max-size = 2GiB
		[prog-true]
		cmd-run = exec /bin/true
		[prog-output]
		cmd-run = yes 'a line of a log that is neither short nor long, as lines are' | head -c $bytes
	END
	daemon_start || return
	await serves || return
	quiet=$(run_true)
	before=$(pss_http)
	# Streams of events: all but one are read by nobody at all.
	python3 - "$dir/http" "$count" "$dir/streams" <<-'END' &
		import socket, sys, time
		streams = []
		for n in range(int(sys.argv[2])):
		    s = socket.socket(socket.AF_UNIX)
		    s.connect(sys.argv[1])
		    s.sendall(b'GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n')
		    s.recv(64)
		    streams.append(s)
		open(sys.argv[3], 'w').close()
		time.sleep(600)
	END
	local streams=$!
	await test -e "$dir/streams" || return
	after=$(pss_http)
	result "a stream of events that nobody reads ($count of them)" "$(calc "printf \"%.1f KiB\", ($after - $before) / $count")" '' '' '≤ 32 KiB'
	busy=$(run_true)
	result '  RUN true beside them' "$busy µs" "without them $quiet µs" "$(ratio "$busy" "$quiet")" ''
	kill "$streams"
	wait "$streams" 2>/dev/null
	deployer RUN output >/dev/null || return
	local id
	id=$(deployer HISTORY output --json | sed -n 's/.*"id":\([0-9]*\).*/\1/p' | tail -n 1)
	began=$EPOCHREALTIME
	deployer LOGS "$id" | cat >/dev/null
	theirs=$(calc "printf \"%.0f\", $bytes / 1048576 / ($EPOCHREALTIME - $began)")
	began=$EPOCHREALTIME
	curl -sf --unix-socket "$dir/http" "http://localhost/api/v1/runs/$id/log" | cat >/dev/null
	ours=$(calc "printf \"%.0f\", $bytes / 1048576 / ($EPOCHREALTIME - $began)")
	result 'a log over HTTP' "$ours MiB/s" "deployer LOGS $theirs MiB/s" "$(ratio "$ours" "$theirs")" '≥ 0.5'
	daemon_stop
}
