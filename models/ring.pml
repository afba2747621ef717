/*
 * ring.pml: bounded ring of N cells, one writer, one reader, with deaths at any point.
 *
 * Each cell has a stamp, written by the writer only; "head" is written by the reader only. Each
 * side has a word "asleep", its robust alive word, and all share the revoked word. Positions
 * grow without end, modulo M (a multiple of N, greater than N).
 * The steps, by the names that the Rust source and DESIGN.md cite:
 *
 *   SEND at position t
 *     [1]  AWAIT until t - head != N
 *     [2]  frame into cell t % N (two halves)
 *     [3]  stamp of the cell = t + 1                                (release)
 *     [4]  SeqCst fence; if the reader is asleep: futex_wake on that stamp
 *   RECEIVE at position h
 *     [5]  AWAIT until the stamp of cell h % N == h + 1             (acquire)
 *     [6]  copy the frame (two halves)
 *     [7]  head = h + 1                                             (release)
 *     [8]  SeqCst fence; if the writer is asleep: futex_wake on head
 *   AWAIT (the same as in flagline.pml; "word" is head or the stamp)
 *     [p]  poll: word says go: Ok
 *     [v]  test revoked: wake all on revoked, then Err
 *     [l]  read the peer's alive word
 *     [q]  read word again: go is Ok (peer died: first [r], then Ok);
 *          else, died or left: [r], then Err
 *     [a]  asleep = 1
 *     [b]  SeqCst fence
 *     [c]  futex_waitv(word still as read, alive still living, revoked still 0)
 *     [d]  awake: asleep = 0, back to [v]
 *   [r] REVOKE, [e] LEAVE (here at any position), [k] KERNEL, [z] ZYGOTE: as in flagline.pml
 *
 * A third rank, the bystander, waits for the writer in some other structure: the alive word is
 * the rank's, not the ring's, and [k] wakes only one of those who sleep on it.
 * An end may be killed before each of these steps.
 *
 * Checked: frames arrive whole, in order, none lost, none twice, whatever the length of the
 * stream; the reader has had every frame when it learns that the writer is gone; Err only with
 * a cause; whenever nothing can move any more, each end has returned or is dead; and (with
 * pan -l) none goes round in circles without a frame moved.
 *
 * Size      N cells, M: positions modulo M, D kills
 * World     Z, SLICES, SPURIOUS, KSTEPS, PENDING: as in flagline.pml
 *           BYSTANDER; STRANGER: somebody else's death revokes the world at any time
 * Controls  NOFENCE4, NOFENCE8, NOFENCEB: that fence left out ([8] shows with N=1 only: in a longer
 *           ring the reader of a full ring comes by [8] again before it can sleep)
 *           FLAGALONE: sleep on the word only
 *           KEEPWAKE: in [q] Ok even if the peer died, without [r]; DROPWAKE: in [v] Err without waking
 *           STAMPFIRST: [3] before the second half of [2]; HEADFIRST: [7] before the second half of [6]
 *           STALEWORD: in [q] judge by the word as read before [l]
 *           ONELAP: stamps modulo N, so that they do not tell one lap from the next
 */
#ifndef N
#define N 2
#endif
#ifndef M
#define M (2 * N)
#endif
#ifndef D
#define D 1
#endif
#ifndef Z
#define Z 1
#endif
#ifndef SLICES
#define SLICES 0
#endif
#ifndef SPURIOUS
#define SPURIOUS 0
#endif
#ifndef PENDING
#define PENDING 0
#endif

#define G (2 * M)	/* ghost positions, modulo G: frames carry them */

/* ranks */
#define W 0
#define R 1
#define B 2
#define PEER(i) (1 - (i))
/* alive words */
#define ALIVE 0
#define DIED 1
#define LEFT 2
/* life of a rank: what is true of it, seen by kernel and zygote only */
#define RUN 0
#define STOPPED 1
#define RETURNED 2
/* futex queues, a bit for each word of [c] */
#define QFLAG 1
#define QALIVE 2
#define QREVOKED 4

byte half0[N];
byte half1[N];
byte stamp[N];
byte head;
bit asleep[2];
byte alive[3];
byte revoked;

byte pos[2];		/* position of each end (private to it) */
byte q[3];		/* queues a rank stands in */
#ifdef KSTEPS
bit woken[3];
#endif
byte life[3];
bit fired[3];		/* [k] done */
bit seen[3];		/* [z] done */

byte kills;
bit killed;
bit stranger;
byte ticks;
byte spurs;

byte sent;		/* ghost: frames stamped so far, modulo G */

#define CELL(i) (pos[i] % N)
#define NEXT(x) (((x) + 1) % G)
#ifdef ONELAP
#define STAMP(x) (NEXT(x) % N)
#else
#define STAMP(x) (NEXT(x) % M)
#endif

#ifdef KSTEPS
#define WAKE(i, bit) q[i] = q[i] & (7 - bit); woken[i] = 1
#define CLEAR(i) q[i] = 0; woken[i] = 0
#define UP(i) (woken[i])
#else
#define WAKE(i, bit) q[i] = 0
#define CLEAR(i) q[i] = 0
#define UP(i) (q[i] == 0)
#endif

/* The word that each side awaits, and what it means. */
#define WORD(i) ((i) == W -> head : stamp[CELL(R)])
#define GO(i, x) ((i) == W -> ((pos[W] % M) + M - (x)) % M != N : (x) == STAMP(pos[R]))

#define WAKEALIVE(i, j) if :: (q[i] & QALIVE) && WAITSFOR(i) == j -> WAKE(i, QALIVE) :: else fi
#define WAITSFOR(i) ((i) == W -> R : W)

inline wake_alive(j) {
	WAKEALIVE(0, j); WAKEALIVE(1, j); WAKEALIVE(2, j)
}

inline wake_one_alive(j) {
	if
	:: (q[0] & QALIVE) && WAITSFOR(0) == j -> WAKE(0, QALIVE)
	:: (q[1] & QALIVE) && WAITSFOR(1) == j -> WAKE(1, QALIVE)
	:: (q[2] & QALIVE) && WAITSFOR(2) == j -> WAKE(2, QALIVE)
	:: else
	fi
}

inline wake_revoked() {
	if :: (q[0] & QREVOKED) -> WAKE(0, QREVOKED) :: else fi;
	if :: (q[1] & QREVOKED) -> WAKE(1, QREVOKED) :: else fi;
	if :: (q[2] & QREVOKED) -> WAKE(2, QREVOKED) :: else fi
}

/* [4] on the stamp of the cell just written, [8] on head */
inline wake_word() {
	if
	:: me == W && (q[R] & QFLAG) && CELL(R) == CELL(W) -> WAKE(R, QFLAG)
	:: me == R && (q[W] & QFLAG) -> WAKE(W, QFLAG)
	:: else
	fi
}

inline cas_revoked(j) { if :: revoked == 0 -> revoked = j + 1 :: else fi }

/* [c], the whole of it at one instant */
inline waitv() {
	if
#ifdef FLAGALONE
	:: WORD(me) == seen_word -> q[me] = QFLAG
#else
	:: WORD(me) == seen_word && alive[PEER(me)] == seen_alive && revoked == 0 -> q[me] = QFLAG | QALIVE | QREVOKED
#endif
	:: else
	fi
}

/* Each step is STEP ... OR_DIE: the step, or death in place of it. */
#define STEP if :: atomic {
#define OR_DIE } :: atomic { kills < D -> kills++; killed = 1; goto dead } fi

proctype End(byte me) {
	byte seen_word;		/* by [q] */
	byte seen_alive;	/* by [l] */
#ifdef STALEWORD
	byte stale;
#endif

again:
	if	/* a side may have had enough at any position */
	:: goto leave
	:: true
	fi;
	STEP if :: GO(me, WORD(me)) -> goto go :: else fi OR_DIE;		/* [p] */
look:
	STEP if									/* [v] */
#ifdef DROPWAKE
		:: revoked != 0 -> goto fail
#else
		:: revoked != 0 -> goto pass
#endif
		:: else
		fi OR_DIE;
#ifdef STALEWORD
	STEP stale = WORD(me) OR_DIE;
	STEP seen_alive = alive[PEER(me)] OR_DIE;
	STEP seen_word = stale; stale = 0;
#else
	STEP seen_alive = alive[PEER(me)] OR_DIE;				/* [l] */
	STEP seen_word = WORD(me);						/* [q] */
#endif
		if
#ifdef KEEPWAKE
		:: GO(me, seen_word) -> goto go
#else
		:: GO(me, seen_word) && seen_alive != DIED -> goto go
		:: GO(me, seen_word) && seen_alive == DIED -> goto revoke
#endif
		:: !GO(me, seen_word) && seen_alive != ALIVE ->
			assert(me == W || pos[R] == sent);
			goto revoke
		:: else
		fi OR_DIE;
#ifdef NOFENCEB
	if	/* [c] may read before [a] can be seen */
	:: true
	:: STEP waitv() OR_DIE;
	   STEP asleep[me] = 1; goto queued OR_DIE
	fi;
#endif
	STEP asleep[me] = 1 OR_DIE;						/* [a] [b] */
#ifdef KSTEPS
	STEP if :: WORD(me) == seen_word -> q[me] = QFLAG :: else -> goto awake fi OR_DIE;	/* [c] */
	STEP if :: alive[PEER(me)] == seen_alive -> q[me] = q[me] | QALIVE :: else -> woken[me] = 1 fi OR_DIE;
	STEP if :: revoked == 0 -> q[me] = q[me] | QREVOKED :: else -> woken[me] = 1 fi OR_DIE;
#else
	STEP waitv() OR_DIE;							/* [c] */
#endif
queued:
	STEP UP(me) -> CLEAR(me) OR_DIE;
awake:
	STEP asleep[me] = 0;							/* [d] */
		seen_word = 0; seen_alive = 0; goto look OR_DIE;
pass:
	STEP wake_revoked(); goto fail OR_DIE;
revoke:
	STEP cas_revoked(PEER(me)) OR_DIE;					/* [r] */
	STEP wake_revoked(); if :: !GO(me, seen_word) -> goto fail :: else fi OR_DIE;
go:
	atomic {
		seen_word = 0; seen_alive = 0;
		if :: me == R -> goto receive :: else fi
	};

	STEP half0[CELL(W)] = pos[W] OR_DIE;					/* [2] */
#ifdef STAMPFIRST
	STEP stamp[CELL(W)] = STAMP(pos[W]); sent = NEXT(sent) OR_DIE;
	STEP half1[CELL(W)] = pos[W] OR_DIE;
#else
	STEP half1[CELL(W)] = pos[W] OR_DIE;
#ifdef NOFENCE4
	if	/* [4] may read before [3] can be seen */
	:: true
	:: STEP !asleep[R] OR_DIE;
	   STEP stamp[CELL(W)] = STAMP(pos[W]); sent = NEXT(sent); goto progress OR_DIE
	fi;
#endif
	STEP stamp[CELL(W)] = STAMP(pos[W]); sent = NEXT(sent) OR_DIE;		/* [3] */
#endif
	STEP if :: !asleep[R] -> goto progress :: else fi OR_DIE;			/* [4] */
	STEP wake_word() OR_DIE;
	goto progress;

receive:
	STEP assert(half0[CELL(R)] == pos[R]) OR_DIE;				/* [6] */
#ifdef HEADFIRST
	STEP head = NEXT(pos[R]) % M OR_DIE;
	STEP assert(half1[CELL(R)] == pos[R]) OR_DIE;
#else
	STEP assert(half1[CELL(R)] == pos[R]) OR_DIE;
#ifdef NOFENCE8
	if	/* [8] may read before [7] can be seen */
	:: true
	:: STEP !asleep[W] OR_DIE;
	   STEP head = NEXT(pos[R]) % M; goto progress OR_DIE
	fi;
#endif
	STEP head = NEXT(pos[R]) % M OR_DIE;					/* [7] */
#endif
	STEP if :: !asleep[W] -> goto progress :: else fi OR_DIE;			/* [8] */
	STEP wake_word() OR_DIE;
progress:
	atomic { pos[me] = NEXT(pos[me]); goto again };

fail:	/* No error without a cause. After it an end may leave, or stay and never call again. */
	atomic {
		assert(killed || stranger || alive[W] == LEFT || alive[R] == LEFT);
		seen_word = 0; seen_alive = 0;
		if
		:: goto leave
		:: life[me] = RETURNED; goto out
		fi
	};
leave:
	STEP alive[me] = LEFT OR_DIE;						/* [e] */
	STEP wake_alive(me); life[me] = RETURNED; goto out OR_DIE;
dead:
	atomic {
		seen_word = 0; seen_alive = 0;
#ifdef STALEWORD
		stale = 0;
#endif
		life[me] = STOPPED
	};
out:
	skip
}

/* Waits for the writer, elsewhere, in vain: AWAIT with a word that never says go. */
proctype Bystander() {
	byte seen_alive;
look:
	STEP if :: revoked != 0 -> goto pass :: else fi OR_DIE;			/* [v] */
	STEP seen_alive = alive[W];						/* [l] [q] */
		if :: seen_alive != ALIVE -> seen_alive = 0; goto revoke :: else fi OR_DIE;
	STEP if									/* [c] */
		:: alive[W] == ALIVE && revoked == 0 -> q[B] = QFLAG | QALIVE | QREVOKED
		:: else -> goto look
		fi OR_DIE;
	STEP UP(B) -> CLEAR(B); goto look OR_DIE;				/* [d] */
revoke:
	STEP cas_revoked(W) OR_DIE;						/* [r] */
pass:
	STEP wake_revoked() OR_DIE;

	atomic { life[B] = RETURNED; goto out };
dead:
	life[B] = STOPPED;
out:
	skip
}

#define FIRE(i) \
	:: atomic { \
		life[i] == STOPPED && !fired[i] -> fired[i] = 1; CLEAR(i); \
		if \
		:: alive[i] == ALIVE -> alive[i] = DIED; wake_one_alive(i) \
		:: PENDING && alive[i] == LEFT -> wake_one_alive(i) \
		:: else \
		fi }
#if SPURIOUS
#define SPUR(i) :: d_step { spurs < SPURIOUS && q[i] != 0 -> spurs++; WAKE(i, 0) }
#else
#define SPUR(i)
#endif

proctype Kernel() {
end:
	do
	:: d_step { kills < D -> kills = D }	/* nobody else is killed */
	FIRE(W) FIRE(R) FIRE(B)
	SPUR(W) SPUR(R) SPUR(B)
	od
}

#define SEE(i) \
	:: d_step { life[i] == STOPPED && fired[i] && !seen[i] -> seen[i] = 1; cas_revoked(i); cares = 1 }

proctype Zygote() {
	bit cares;
end:
	do
	SEE(W) SEE(R) SEE(B)
	:: d_step { cares -> wake_revoked(); cares = 0 }
#if Z == 2
	:: atomic { cares = 0; break }
#endif
	od
}

proctype Stranger() {
	d_step { stranger = 1; cas_revoked(3) };
	d_step { wake_revoked() }
}

#define TICK(i) if :: q[i] != 0 -> WAKE(i, 0) :: else fi
#define OVER(i) (life[i] == STOPPED || life[i] == RETURNED)

/* When nothing can move: all is over, or the time slices end, or somebody hangs. */
proctype Monitor() {
	do
	:: atomic {
		timeout ->
		if
		:: OVER(W) && OVER(R) && OVER(B) -> break
		:: else ->
			assert(ticks < SLICES);
			ticks++;
			TICK(W); TICK(R); TICK(B)
		fi }
	od
}

init {
	atomic {
		byte i;
		do	/* a lap ago: old stamps differ from those awaited */
		:: i < N -> stamp[i] = (i + 1 + M - N) % M; i++
		:: else -> break
		od;
		i = 0;
		run End(W);
		run End(R);
#ifdef BYSTANDER
		run Bystander();
#else
		life[B] = RETURNED;
#endif
#ifdef STRANGER
		run Stranger();
#endif
		run Kernel();
#if Z
		run Zygote();
#endif
		run Monitor()
	}
}
