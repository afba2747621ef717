/*
 * ledger.pml: tasks dealt out from a stretch, claimed by compare-and-swap, worked by slots whose processes die.
 *
 * A word per task: FREE | OWNED(slot, attempt) | DONE | FAILED. One stretch first..until of tasks that
 * nobody took, in a single word; a producer lets it grow, and says "closed" when nothing more will come.
 * Each slot has a note of its part at[s]..end[s], and two flags: given_up[s], through[s]. A slot's number
 * outlives its process; what a process knows of others (known) does not. The steps:
 *
 *   WORKER of slot s, fresh from the fork
 *     [f]  given_up[s]: exit. Else TAKE OVER at[s] from s, WALK at[s]..end[s], then LOOK
 *   LOOK
 *     [l]  key; read closed, then the stretch; there is something: TAKE. Else INHERIT from somebody who is
 *          given up and not known. Else closed: END; else sleep until told, and LOOK again
 *   TAKE CHUNK tasks, or what there is
 *     [T1] NOTE the part
 *     [T2] CAS stretch: first += CHUNK; lost: LOOK. Won: WALK the part, then LOOK
 *   NOTE a part
 *     [e]  end[s] = 0; at[s] = its first task; end[s] = its end
 *   WALK a part; for each task whose word is FREE
 *     [T3] at[s] = task
 *     [1]  CAS word FREE -> OWNED(s, 0); won: RUN
 *   RUN a task
 *     [2]  write the first half of its row, then the second
 *     [3]  word = DONE                                             (release)
 *   TAKE OVER a task from slot g
 *     [1'] the word is OWNED(g, a): CAS -> OWNED(s, a + 1). Won: RUN, or if a + 1 is K: word = FAILED
 *   INHERIT from slot g
 *     [h]  through[s] = 0; read g's part; NOTE it; WALK it
 *     [h'] read g's part; NOTE it; TAKE OVER its first task from g; WALK it; g is known; LOOK
 *   END
 *     [T4] end[s] = 0; through[s] = 1                              (fence)
 *     [t]  each other slot is through or given up: tell
 *     [w]  key; somebody is given up and not known: INHERIT. Each other slot is through or known: exit.
 *          Else sleep until told, and [w] again
 *   BUILD, before [T3] and [1']; if it fails
 *     [g]  given_up[s] = 1; tell; exit
 *   ZYGOTE, once a pidfd says that the whole process of slot s is gone (it writes no more)
 *     [z]  given_up[s]: tell. Else fork the next process of the slot, or, after too many deaths:
 *          given_up[s] = 1; tell
 *   PRODUCER
 *     [P1] until += 1                                              (release)
 *     [P2] tell; then [P1], or
 *     [P3] closed = 1; tell
 *
 * A worker may be killed before each of these steps, and between the stores of one; the flags of others
 * are read one by one in [t] and [w]. "Key" and "told" are an eventcount: who is told after its key does
 * not sleep. Its time slices are left out: no wake-up may be lost without them.
 *
 * Why [T4] empties the note: a worker that noted a part, and lost it to another in [T2], has that note
 * still. If it died after through[s] = 1, its successor would claim tasks of that part, while others
 * believe that it holds none, and exit. Through means that nothing is noted, and nothing owned.
 * Why [z] tells for a slot that has given itself up: its process may have been killed before it told.
 *
 * Checked: only the owner writes a row, only while the word says so; each task is committed at most
 * once, DONE with both halves from one claim, or FAILED after K deaths in it; a task is taken over only
 * when the process that claimed it is dead. When nothing can move any more each worker has exited or was
 * given up, and unless all were given up each task is DONE or FAILED; if all were, one that is left is
 * FREE, or OWNED by one of them.
 *
 * Size      P slots, N tasks, CHUNK tasks a part, D kills, K attempts
 *           B builds fail, G slots are given up by the zygote; GRANTED tasks at the start; if these
 *           are N, it is closed from the start
 * Controls  FETCHADD: the stretch moves by fetch_add, which is the claim; the owner is noted afterwards
 *           ROBUST: [z] as soon as the robust alive word fires, when the victim may write on
 *           REUSE: [f] goes straight to LOOK; LATENOTE: [T3] after [1]; BLAME: [1'] without looking at the word
 *           NOTEDLAST: [T2] before [T1]; TWOHEIRS: [1'] is a load and a store
 *           LATEENTER: [h] takes over before it notes; STAYTHROUGH: [h] leaves through[s] as it is
 *           HASTY: exit instead of END; KEEPNOTE: [T4] leaves end[s] as it is
 *           ANEW: with KEEPNOTE, [f] begins with through[s] = 0
 *           STALE: in [w] whoever is given up counts as known
 *           UNTOLD: no [t]; NOTOLDGIVEUP: [g] and [z] do not tell; MUTE: [z] does not tell for those who did [g]
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
#ifndef B
#define B 0
#endif
#ifndef G
#define G 0
#endif
#ifndef GRANTED
#define GRANTED N
#endif

#define FREE 0
#define DONE 1
#define FAILED 2
#define OWNED(s) (3 + (s))

byte word[N];		/* the state word: who, and which attempt */
byte attempt[N];
byte half0[N];		/* the row: which claim wrote it; once it is committed it is of no interest, and 0 */
byte half1[N];
byte first;		/* the stretch */
byte until = GRANTED;
bit closed = (GRANTED == N);
byte at[P];		/* what a slot notes of where it is */
byte end[P];

/* sets of slots, a bit each */
byte given_up;
byte through;		/* has gone through all that it could find */
byte drowsy;		/* has a key, and was not told since */
byte gone;		/* the pidfd is readable */
byte over;		/* exited of its own will, or never forked again */
byte kills;
byte fails;
byte giveups;
#ifdef ROBUST
byte generation[P];	/* of the slot's process, as the zygote counts */
byte fired[P];		/* so many processes of the slot are doomed, and their alive words fired */
#endif

bit commits[N];		/* ghost */
bit orphan[N];		/* ghost: the process that made the last claim is dead */

#define ALL ((1 << P) - 1)
#define ADD(set, s) set = set | (1 << (s))
#define DROP(set, s) set = set & (ALL - (1 << (s)))
#define HAS(set, s) (((set) >> (s)) & 1)
#define TELL drowsy = 0
#define CLAIM ((s) + P * mine + 1)

#define STEP if :: atomic {
#ifdef ROBUST
#define ORPHANED
#define OR_DIE } :: fired[s] > me -> goto dead fi
#else
#define ORPHANED assert(orphan[r])
#define OR_DIE } :: atomic { kills < D -> kills++; goto dead } fi
#endif
#define OR_UNBUILT } :: atomic { fails < B -> fails++; goto unbuilt
/* its claim, or that of a predecessor */
#define DIES(s, r) \
	do \
	:: r < N -> orphan[r] = orphan[r] || word[r] == OWNED(s); r++ \
	:: else -> r = 0; break \
	od
#ifdef LATEENTER
#define NOT_LEFT not_left
#else
#define NOT_LEFT walk
#endif
#define FORGET r = 0; e = 0; u = 0; v = 0; g = 0; mine = 0; c = 0; again = 0

proctype Worker(byte s; byte me) {
	byte r, e;	/* what is left of the part */
	byte u;		/* the stretch as it was read: r..u */
	byte v;		/* another slot */
	byte g;		/* whose part it is */
	byte mine;	/* the attempt */
	byte known;	/* set of slots that were given up, and whose parts it has gone through */
	bit c;		/* closed, as it was read */
	bit again;	/* goes through g's part for the second time */

fresh:
	STEP if								/* [f] */
		:: HAS(given_up, s) -> goto leave
		:: else
		fi;
#ifdef REUSE
		goto look;
#endif
		g = s; r = at[s]; e = end[s] OR_DIE;
#ifdef ANEW
	STEP DROP(through, s) OR_DIE;
#endif
left:
	STEP								/* [1'] */
#ifndef BLAME
		if :: word[r] == OWNED(g) :: else -> goto NOT_LEFT fi;
#endif
		mine = attempt[r] + 1;
		if :: mine < K :: else -> goto take_over fi OR_UNBUILT OR_DIE;
take_over:
	STEP if
#if !defined(BLAME) && !defined(TWOHEIRS)
		:: word[r] == OWNED(g) && attempt[r] + 1 == mine ->
			ORPHANED; orphan[r] = 0; word[r] = OWNED(s); attempt[r] = mine
		:: else -> mine = 0; goto NOT_LEFT
#else
		:: true -> orphan[r] = 0; word[r] = OWNED(s); attempt[r] = mine
#endif
		fi OR_DIE;
#ifdef LATEENTER
not_left:
	if
	:: atomic { g != s -> goto late }
	:: atomic { g == s && mine == 0 -> goto walk }
	:: atomic { g == s && mine > 0 }
	fi;
owned:
#endif
	if
	:: atomic { mine < K -> goto work }
	:: atomic { mine >= K }
	fi;
	STEP assert(word[r] == OWNED(s) && attempt[r] == mine);
		assert(commits[r] == 0);
		word[r] = FAILED; commits[r] = 1; attempt[r] = 0; half0[r] = 0; half1[r] = 0;
		mine = 0; r++ OR_DIE;
walk:
	atomic {
		if
		:: r >= e && g != s && !again -> again = 1; r = 0; e = 0; goto heir_again
		:: r >= e && (g == s || again) ->
			if :: g != s -> ADD(known, g) :: else fi; r = 0; e = 0; g = 0; again = 0; goto look
		:: else
		fi
	};
	STEP if
		:: word[r] == FREE
		:: else -> r++; goto walk
		fi OR_UNBUILT OR_DIE;
#ifndef LATENOTE
	STEP at[s] = r OR_DIE;						/* [T3] */
#endif
	STEP if								/* [1] */
		:: word[r] == FREE -> word[r] = OWNED(s)
		:: else -> r++; goto walk
		fi OR_DIE;
#ifdef LATENOTE
	STEP at[s] = r OR_DIE;
#endif
work:
	STEP assert(word[r] == OWNED(s) && attempt[r] == mine); half0[r] = CLAIM OR_DIE;	/* [2] */
	STEP assert(word[r] == OWNED(s) && attempt[r] == mine); half1[r] = CLAIM OR_DIE;
	STEP assert(word[r] == OWNED(s) && attempt[r] == mine);		/* [3] */
		assert(commits[r] == 0);
		assert(half0[r] == CLAIM && half1[r] == CLAIM);
		word[r] = DONE; commits[r] = 1; attempt[r] = 0; half0[r] = 0; half1[r] = 0;
		mine = 0; r++; goto walk OR_DIE;

look:
	STEP ADD(drowsy, s); c = closed OR_DIE;				/* [l] */
	STEP if
		:: first < until ->
			DROP(drowsy, s); c = 0; r = first; u = until; e = (r + CHUNK < u -> r + CHUNK : u)
		:: else -> goto none
		fi OR_DIE;
#ifdef FETCHADD
	STEP if
		:: first < until -> r = first; e = r + 1; u = 0; first = e; g = s
		:: else -> r = 0; e = 0; u = 0; goto look
		fi OR_DIE;
	STEP at[s] = r; word[r] = OWNED(s); goto work OR_DIE;
#endif
#ifndef NOTEDLAST
	STEP end[s] = 0 OR_DIE;						/* [T1] */
	STEP at[s] = r OR_DIE;
	STEP end[s] = e OR_DIE;
#endif
	STEP if								/* [T2] */
		:: first == r && until == u -> first = e; u = 0; g = s
		:: else -> r = 0; e = 0; u = 0; goto look
		fi OR_DIE;
#ifdef NOTEDLAST
	STEP end[s] = 0 OR_DIE;
	STEP at[s] = r OR_DIE;
	STEP end[s] = e OR_DIE;
#endif
	goto walk;

/* looked at in one step: nobody who is given up or known ever ceases to be */
#define UNKNOWN(x) :: HAS(given_up, x) && !HAS(known, x) -> g = x; DROP(drowsy, s); c = 0; goto heir
#if P > 2
#define ANYBODY UNKNOWN(0) UNKNOWN(1) UNKNOWN(2)
#else
#if P > 1
#define ANYBODY UNKNOWN(0) UNKNOWN(1)
#else
#define ANYBODY UNKNOWN(0)
#endif
#endif

none:
	STEP if
		ANYBODY
		:: else
		fi;
		if :: c -> DROP(drowsy, s); c = 0; goto finish :: else fi OR_DIE;
	STEP !HAS(drowsy, s) -> goto look OR_DIE;			/* asleep */

heir:
#ifndef STAYTHROUGH
	STEP DROP(through, s) OR_DIE;					/* [h] */
#endif
#ifdef LATEENTER
	again = 1;
#endif
heir_again:
	STEP r = at[g]; e = end[g] OR_DIE;
#ifdef LATEENTER
	if
	:: atomic { r < e -> goto left }
	:: atomic { r >= e }
	fi;
late:
#endif
	STEP end[s] = 0 OR_DIE;						/* [e] */
	STEP at[s] = r OR_DIE;
	STEP end[s] = e OR_DIE;
	if
#ifdef LATEENTER
	:: atomic { mine > 0 -> goto owned }
	:: atomic { mine == 0 -> goto walk }
#else
	:: atomic { r < e && again -> goto left }
	:: atomic { r >= e || !again -> goto walk }
#endif
	fi;

finish:
#ifdef HASTY
	goto leave;
#endif
#ifndef KEEPNOTE
	STEP end[s] = 0 OR_DIE;						/* [T4] */
#endif
	STEP ADD(through, s); v = 0 OR_DIE;
#ifndef UNTOLD
last:
	atomic {
		if :: v == s -> v++ :: else fi;
		if :: v == P -> v = 0; goto tells :: else fi
	};
	STEP if								/* [t] */
		:: HAS(through | given_up, v) -> v++; goto last
		:: else -> v = 0; goto wait
		fi OR_DIE;
tells:
	STEP TELL OR_DIE;
#endif
wait:
	STEP ADD(drowsy, s);						/* [w] */
#ifndef STALE
		if
		ANYBODY
		:: else
		fi
#endif
		OR_DIE;
others:
	atomic {
		if :: v == s -> v++ :: else fi;
		if :: v == P -> v = 0; DROP(drowsy, s); goto leave :: else fi
	};
	STEP if
		:: HAS(through | known, v) -> v++; goto others
#ifdef STALE
		:: HAS(given_up, v) && !HAS(through | known, v) -> v++; goto others
#endif
		:: else -> v = 0
		fi OR_DIE;
	STEP !HAS(drowsy, s) -> goto wait OR_DIE;			/* asleep */

unbuilt:
	STEP ADD(given_up, s) OR_DIE;					/* [g] */
#ifndef NOTOLDGIVEUP
	STEP TELL OR_DIE;
#endif
leave:
	STEP FORGET; known = 0; ADD(over, s); goto out OR_DIE;
dead:
	atomic {
		FORGET; known = 0; DROP(drowsy, s);
#ifndef ROBUST
		ADD(gone, s);
		DIES(s, r)
#endif
	};
#ifndef ROBUST
	/* this process is at its end; its place in the model serves the next one, after [z] */
end_buried:
	if
	:: atomic { !HAS(gone, s) -> goto fresh }
	fi;
#endif
out:
	skip
}

#ifdef ROBUST
#define SEEN(s) (fired[s] > generation[s])
#define FORK(s) generation[s]++; run Worker(s, generation[s])
#define FIRE(s) :: atomic { kills < D && fired[s] == generation[s] && !HAS(over, s) -> kills++; fired[s]++ }
#else
#define SEEN(s) HAS(gone, s)
#define FORK(s) DROP(gone, s)
#define FIRE(s)
#endif
#ifdef NOTOLDGIVEUP
#define TELL_GIVEN_UP
#else
#define TELL_GIVEN_UP TELL;
#endif
#ifdef MUTE
#define TELL_AGAIN
#else
#define TELL_AGAIN TELL_GIVEN_UP
#endif

#define REPLACE(s) \
	:: atomic { SEEN(s) && !HAS(over | given_up, s) -> FORK(s) } \
	:: atomic { SEEN(s) && !HAS(over | given_up, s) && giveups < G -> giveups++; ADD(given_up, s); slot = s + 1 } \
	   atomic { slot == s + 1 -> slot = 0; TELL_GIVEN_UP ADD(over, s) } \
	:: atomic { SEEN(s) && !HAS(over, s) && HAS(given_up, s) -> TELL_AGAIN ADD(over, s) }

proctype Zygote() {
	byte slot;
end_zygote:
	do
	REPLACE(0)							/* [z] */
#if P > 1
	REPLACE(1)
#endif
#if P > 2
	REPLACE(2)
#endif
	od
}

proctype Kernel() {
end_kernel:
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

#if GRANTED < N
proctype Producer() {
	do
	:: atomic { until < N -> until++ }				/* [P1] */
	   TELL								/* [P2] */
	:: atomic { until == N -> closed = 1 }				/* [P3] */
	   TELL;
	   break
	od
}
#endif

proctype Monitor() {
	byte i;
	atomic {
		timeout;
		assert(over == ALL);
		do
		:: i < N && given_up != ALL ->
			if
			:: word[i] == DONE || word[i] == FAILED
			:: else -> assert(false)	/* a row was lost */
			fi;
			i++
		:: i < N && given_up == ALL ->
			/* nobody is left to be its heir */
			assert(word[i] < OWNED(0) || HAS(given_up, word[i] - OWNED(0)));
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
#if GRANTED < N
		run Producer();
#endif
		run Monitor()
	}
}
