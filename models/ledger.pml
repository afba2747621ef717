/*
 * ledger.pml: rows claimed by compare-and-swap, worked by slots whose processes die.
 *
 * A word per row: FREE | OWNED(slot) | DONE | FAILED. A shared cursor says where to
 * look next; it is a hint and nothing depends on it. A slot's number outlives its process.
 * The steps, by the names that the Rust source and DESIGN.md cite:
 *
 *   WORKER of slot s, fresh from the fork
 *     [1]  if the word of at[s] is OWNED(s): run it; then go on with the stretch at[s]..to[s], as in [3] or, last[s], [4]
 *     [2]  c = fetch_add(cursor, CHUNK); c past the end: [4]
 *     [3]  enter the chunk, not the last; for each row that is FREE: CLAIM it; won: run it; then [2]
 *     [4]  enter the table, the last; for each row that is FREE: CLAIM it; won: run it; then exit
 *   ENTER a stretch
 *     [e]  to[s] = 0; at[s] = its first row; last[s] = is it the last?; to[s] = its end
 *   CLAIM row r
 *     [0]  at[s] = r
 *     [5]  CAS word FREE -> OWNED(s)
 *   RUN row r
 *     [6]  compute, write the first half of the row's data
 *     [7]  write the second half
 *     [8]  word = DONE                                              (release)
 *   ZYGOTE, once a pidfd says that the whole process of slot s is gone (it writes no more)
 *     [z]  if the word of at[s] is OWNED(s): attempts += 1; if they are K: word = FAILED
 *     [f]  fork the next process of slot s, which starts at [1]
 *
 * A worker may be killed before each of these steps. A victim that writes on after its alive
 * word fired is the same to this protocol, which does not read the alive word at all.
 *
 * Checked: only the owner writes a row, only while the word says so; each row is committed at
 * most once; when all have exited each row is DONE, with both halves from the one process that
 * committed it, or FAILED after K deaths in it; nobody hangs.
 *
 * Size      P slots, N rows, CHUNK rows a step of the cursor, D kills, K attempts
 * Controls  FETCHADD: the fetch_add is the claim, the owner is noted afterwards
 *           ROBUST: [z] [f] as soon as the robust alive word fires, when the victim may write on
 *           NOSCAN: exit instead of [4]; BLAME: [z] without looking at the word
 *           REUSE: [f] without [1]; LATENOTE: [0] after [5]; NOLAST: a stretch that ends with the table is the last
 */
#ifndef P
#define P 2
#endif
#ifndef N
#define N 3
#endif
#ifndef CHUNK
#define CHUNK 2
#endif
#ifndef D
#define D 2
#endif
#ifndef K
#define K 2
#endif

#define FREE 0
#define DONE 1
#define FAILED 2
#define OWNED(s) (3 + (s))

byte word[N];
byte half0[N];		/* data: which process of the slot wrote it */
byte half1[N];
byte cursor;
byte at[P];		/* what a slot notes of where it is */
byte to[P];
bit last[P];
byte attempts[N];	/* the zygote's own */

byte generation[P];	/* of the slot's process, as the zygote counts */
bit gone[P];		/* the pidfd is readable */
bit over[P];		/* exited of its own will */
byte kills;
#ifdef ROBUST
byte fired[P];		/* so many processes of the slot are doomed, and their alive words fired */
#endif

byte by[N];		/* ghost: who committed the row */
byte commits[N];	/* ghost */

#define STEP if :: atomic {
#ifdef ROBUST
#define OR_DIE } :: fired[s] > me -> goto dead fi
#else
#define OR_DIE } :: atomic { kills < D -> kills++; goto dead } fi
#endif
#ifdef ROBUST
#define ME (me + 1)
#else
#define ME (generation[s] + 1)
#endif

/* which loop a row was found in, to return to it */
#define OWN 0
#define LIST 1
#define SCAN 2

proctype Worker(byte s; byte me) {
	byte r, end, from;

fresh:
#ifdef REUSE
	goto next;
#endif
	STEP if								/* [1] */
		:: word[at[s]] == OWNED(s) -> r = at[s]; from = OWN; goto work
		:: else
		fi OR_DIE;
rest:
	STEP r = at[s]; end = to[s];
		if
		:: end == 0 -> r = 0; goto next
#ifdef NOLAST
		:: end == N -> from = SCAN
		:: end != 0 && end != N -> from = LIST
#else
		:: end != 0 && last[s] -> from = SCAN
		:: end != 0 && !last[s] -> from = LIST
#endif
		fi OR_DIE;
	goto enter;
next:
	STEP r = cursor;						/* [2] */
#ifdef FETCHADD
		if :: cursor < N -> cursor++ :: else fi;
		if :: r >= N -> goto leave :: else -> from = LIST; end = r + 1 fi OR_DIE;
	STEP at[s] = r; word[r] = OWNED(s); goto work OR_DIE;
#else
		if :: cursor < N -> cursor = cursor + CHUNK :: else fi;
		if
		:: r >= N -> r = 0; from = SCAN; end = N
		:: else ->
			from = LIST; end = r + CHUNK;
			if :: end > N -> end = N :: else fi
		fi OR_DIE;
#ifdef NOSCAN
	if :: atomic { from == SCAN -> goto leave } :: atomic { from != SCAN } fi;
#endif
#endif
enter:
	STEP to[s] = 0 OR_DIE;						/* [e] */
	STEP at[s] = r OR_DIE;
	STEP last[s] = (from == SCAN) OR_DIE;
	STEP to[s] = end OR_DIE;
claim:
	atomic {
		if
		:: r == end && from == SCAN -> goto leave
		:: r == end && from == LIST -> r = 0; end = 0; from = OWN; goto next
		:: else
		fi
	};
	STEP if								/* [3] [4] */
		:: word[r] == FREE
		:: else -> r++; goto claim
		fi OR_DIE;
#ifndef LATENOTE
	STEP at[s] = r OR_DIE;						/* [0] */
#endif
	STEP if								/* [5] */
		:: word[r] == FREE -> word[r] = OWNED(s)
		:: else -> r++; goto claim
		fi OR_DIE;
#ifdef LATENOTE
	STEP at[s] = r OR_DIE;
#endif
work:
	STEP assert(word[r] == OWNED(s)); half0[r] = ME OR_DIE;		/* [6] */
	STEP assert(word[r] == OWNED(s)); half1[r] = ME OR_DIE;		/* [7] */
	STEP assert(word[r] == OWNED(s));				/* [8] */
		word[r] = DONE; by[r] = ME; commits[r]++; r++;
		if :: from == OWN -> goto rest :: else -> goto claim fi OR_DIE;
leave:
	STEP r = 0; end = 0; from = 0; over[s] = 1; goto out OR_DIE;
dead:
	atomic { r = 0; end = 0; from = 0; gone[s] = 1 };
#ifndef ROBUST
	/* this process is at its end; its place in the model serves the next one, after [f] */
	if
	:: atomic { gone[s] == 0 -> goto fresh }
	fi;
#endif
out:
	skip
}

#ifdef ROBUST
#define SEEN(s) (fired[s] > generation[s])
#else
#define SEEN(s) (gone[s])
#endif
#ifdef BLAME
#define GUILTY(s) true
#else
#define GUILTY(s) (word[at[s]] == OWNED(s))
#endif

#define REPLACE(s) \
	:: atomic { \
		SEEN(s) && !over[s] -> \
		if \
		:: GUILTY(s) -> \
			attempts[at[s]]++; \
			if :: attempts[at[s]] == K -> word[at[s]] = FAILED :: else fi \
		:: else \
		fi; \
		slot = s + 1 } \
	   atomic { slot == s + 1 -> slot = 0; generation[s]++; FORK(s) }
#ifdef ROBUST
#define FORK(s) run Worker(s, generation[s])
#define FIRE(s) :: atomic { kills < D && fired[s] == generation[s] && !over[s] -> kills++; fired[s]++ }
#else
#define FORK(s) gone[s] = 0
#define FIRE(s)
#endif

proctype Zygote() {
	byte slot;
end:
	do
	REPLACE(0)
#if P > 1
	REPLACE(1)
#endif
#if P > 2
	REPLACE(2)
#endif
	od
}

proctype Kernel() {
end:
	do
	:: atomic { kills < D -> kills = D }	/* nobody else is killed */
	FIRE(0)
#if P > 1
	FIRE(1)
#endif
#if P > 2
	FIRE(2)
#endif
	od
}

proctype Monitor() {
	byte i;
	atomic {
		timeout;
		do
		:: i < P -> assert(over[i]); i++
		:: else -> break
		od;
		i = 0;
		do
		:: i < N ->
			if
			:: word[i] == DONE ->
				assert(commits[i] == 1 && half0[i] == by[i] && half1[i] == by[i]);
				assert(attempts[i] < K)
			:: word[i] == FAILED -> assert(commits[i] == 0 && attempts[i] == K)
			:: else -> assert(false)	/* a row was lost */
			fi;
			i++
		:: else -> break
		od
	}
}

init {
	atomic {
		byte i;
		do
		:: i < P -> run Worker(i, 0); i++
		:: else -> break
		od;
		i = 0;
		run Zygote();
		run Kernel();
		run Monitor()
	}
}
