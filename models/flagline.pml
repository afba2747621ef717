/*
 * flagline.pml: barrier and exchange over flag lines, with deaths at any point.
 *
 * Each rank owns a line: two cells (payload and sequence word, used in turn by
 * parity of the epoch), a count of sleepers and a robust "alive" word. One word
 * "revoked" belongs to the world. The steps, by the names that the Rust source
 * and DESIGN.md cite:
 *
 *   ARRIVE at epoch e
 *     [1]  payload and header into my cell[e & 1]
 *     [2]  my cell[e & 1].seq = e                                   (release)
 *     [3]  SeqCst fence
 *     [4]  if my line has sleepers: futex_wake(all) on that seq word
 *   AWAIT peer j at epoch e (peers in rank order, one after the other)
 *     [p]  poll: cell_j[e & 1].seq == e is Ok                       (acquire)
 *     [v]  test revoked: wake all on revoked, then Err
 *     [l]  read alive_j
 *     [q]  read cell_j[e & 1].seq again: e is Ok (j died: first [r], then Ok);
 *          else, j died or left: [r], then Err
 *     [a]  sleepers_j += 1
 *     [b]  SeqCst fence
 *     [c]  futex_waitv(seq still as read, alive_j still living, revoked still 0)
 *     [d]  awake: sleepers_j -= 1, back to [v]; so revoked, alive, flag
 *   REVOKE because of rank j
 *     [r]  CAS revoked 0 -> j + 1, then wake all on revoked, whoever won
 *   LEAVE, after the last epoch, early, or after Err
 *     [e]  alive = LEFT, fence, wake all on my alive word
 *   KERNEL, after a kill
 *     [k]  alive_j |= OWNER_DIED and wake ONE sleeper on it (robust list); nothing
 *          if the word says LEFT, for it no longer holds the thread's id
 *   ZYGOTE, after [k], once the pidfd says that the whole process is gone
 *     [z]  as [r], even if revoked is already set
 *
 * The one wake of [k] must not be lost: it may go to a rank that finds its flag set, or revoked
 * set by one who has not come to wake yet. Hence the wakes in [q] and [v]: whoever sees a death
 * revokes, and nobody returns Err without waking all.
 *
 * A rank may be killed before each of these steps, and between the test and the wake of [4], the
 * CAS and the wake of [r], the store and the wake of [e]: each read, write and system call is a
 * step of its own. A rank that dies asleep stays in the kernel's queues until its own [k], so it
 * can swallow a wake.
 *
 * Checked: nobody passes epoch e before all arrived at e; what is read is what was written for e;
 * Err only after a kill or an early leave; whenever nothing can move any more, each rank is dead
 * or has returned; and (with pan -l, R > 0) no execution goes round in circles.
 *
 * Size      P ranks (2..4), R epochs (0: without end), D kills, M: sequence numbers modulo M (even, >= 4)
 * World     Z=1 a zygote, 0 none, 2 one that may stop for ever before any of its steps
 *           SLICES=n: at most n times, when all is still, the time slices of all sleepers end
 *           SPURIOUS=n wakes out of nowhere (signals)
 *           EARLY: one rank may leave before its last epoch
 *           LINGER: a victim may run on after [k] (two-threaded victims)
 *           KSTEPS: waitv queues word by word, and a woken sleeper stays queued on the other
 *           words until it runs, as in the kernel
 *           ASYM: [3] only keeps the compiler from reordering, so [4] may read before [2] can be
 *           seen; [b] is a barrier on all processors, after which every store made before it is seen
 *           PENDING=1: LEFT is 0 and the alive word is the robust list's list_op_pending, so
 *           that [k] wakes one sleeper also if the victim had got as far as alive = LEFT
 * Controls  NOFENCE3, NOFENCEB: [3] or [b] left out, so the load may come before the store is seen
 *           ASYM LIGHTB: [b] is a fence on the sleeper's own processor
 *           FLAGALONE: sleep on the flag only; NODOUBLE: one payload cell for all epochs
 *           NOTEST: [l] not judged before the first [c], which expects alive_j as read, dead or not
 *           KEEPWAKE: in [q] Ok even if j died, without [r]; DROPWAKE: in [v] Err without waking
 *           WAKEIFWON: [z] wakes only if its CAS won
 *           ZLEFT: [z] does nothing for a victim whose word says LEFT
 */
#ifndef P
#define P 3
#endif
#ifndef R
#define R 2
#endif
#ifndef D
#define D 1
#endif
#ifndef M
#define M 4
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

/* alive words */
#define ALIVE 0
#define DIED 1
#define LEFT 2
/* life of a rank: what is true of it, seen by kernel and zygote only */
#define RUN 0
#define DOOMED 1
#define STOPPED 2
#define RETURNED 3
/* futex queues, a bit for each word of [c] */
#define QFLAG 1
#define QALIVE 2
#define QREVOKED 4

byte seq[2 * P];	/* sequence word of rank i's cells 2i, 2i + 1 */
byte pay[2 * P];	/* payload: the epoch it was written for */
byte alive[P];
byte sleepers[P];
byte revoked;

byte n[P];		/* epoch of rank i (private to it; the kernel knows it as the address of [c]) */
byte on[P];		/* peer it awaits */
byte q[P];		/* queues it stands in */
byte life[P];
bit fired[P];		/* [k] done */
bit seen[P];		/* [z] done */
#ifdef KSTEPS
bit woken[P];
#endif
#ifdef ASYM
bit buffered[P];	/* rank i's [2] waits in its store buffer, and its [4] has been done */
#endif

/* what has been allowed to happen so far */
byte kills;
bit killed;
byte ticks;
byte spurs;
bit early;

byte at[P];		/* ghost: the epoch at which rank i last arrived */

#define E(i) (n[i] % M)
#define PAR(i) (n[i] & 1)
#define CELL(owner, reader) (2 * (owner) + PAR(reader))
#ifdef NODOUBLE
#define PAYCELL(owner, reader) (2 * (owner))
#else
#define PAYCELL(owner, reader) CELL(owner, reader)
#endif

#if R == 0
#define NEXT(x) (((x) + 1) % M)
#else
#define NEXT(x) ((x) + 1)
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

#define WAKEFLAG(i, j) if :: (q[i] & QFLAG) && on[i] == j && PAR(i) == PAR(j) -> WAKE(i, QFLAG) :: else fi
#define WAKEALIVE(i, j) if :: (q[i] & QALIVE) && on[i] == j -> WAKE(i, QALIVE) :: else fi
#define WAKEREVOKED(i) if :: (q[i] & QREVOKED) -> WAKE(i, QREVOKED) :: else fi
#define TICK(i) if :: q[i] != 0 -> WAKE(i, 0) :: else fi

inline wake_flag(j) {
	WAKEFLAG(0, j); WAKEFLAG(1, j);
#if P > 2
	WAKEFLAG(2, j);
#endif
#if P > 3
	WAKEFLAG(3, j);
#endif
}

inline wake_alive(j) {
	WAKEALIVE(0, j); WAKEALIVE(1, j);
#if P > 2
	WAKEALIVE(2, j);
#endif
#if P > 3
	WAKEALIVE(3, j);
#endif
}

inline wake_one_alive(j) {
	if
	:: (q[0] & QALIVE) && on[0] == j -> WAKE(0, QALIVE)
	:: (q[1] & QALIVE) && on[1] == j -> WAKE(1, QALIVE)
#if P > 2
	:: (q[2] & QALIVE) && on[2] == j -> WAKE(2, QALIVE)
#endif
#if P > 3
	:: (q[3] & QALIVE) && on[3] == j -> WAKE(3, QALIVE)
#endif
	:: else
	fi
}

inline wake_revoked() {
	WAKEREVOKED(0); WAKEREVOKED(1);
#if P > 2
	WAKEREVOKED(2);
#endif
#if P > 3
	WAKEREVOKED(3);
#endif
}

/* [c], the whole of it at one instant */
inline waitv() {
	if
#ifdef FLAGALONE
	:: seq[CELL(on[me], me)] == rs -> q[me] = QFLAG
#else
	:: seq[CELL(on[me], me)] == rs && alive[on[me]] == ra && revoked == 0 -> q[me] = QFLAG | QALIVE | QREVOKED
#endif
	:: else
	fi
}

inline cas_revoked(j) { if :: revoked == 0 -> revoked = j + 1 :: else fi }

/* Each step of a rank is STEP ... OR_DIE: the step, or its death in place of it. */
#define STEP if :: atomic {
#ifdef LINGER
#define OR_DIE } :: life[me] == DOOMED -> goto dead fi
#else
#define OR_DIE } :: atomic { kills < D -> kills++; killed = 1; goto dead } fi
#endif

#ifdef NOTEST
#define JUDGED slept
#else
#define JUDGED true
#endif

proctype Rank(byte me) {
	byte rs;	/* sequence word as read by [p], [q] */
	byte ra;	/* alive word as read by [l] */
#ifdef NOTEST
	bit slept;
#endif

	n[me] = 1;
round:
#ifdef EARLY
	if
	:: atomic { early == 0 -> early = 1; goto leave }
	:: true
	fi;
#endif
	STEP pay[PAYCELL(me, me)] = E(me) OR_DIE;					/* [1] */
#ifdef NOFENCE3
	if	/* [4] may read before [2] can be seen */
	:: true
	:: STEP sleepers[me] == 0 OR_DIE;
	   STEP seq[CELL(me, me)] = E(me); at[me] = n[me]; goto await OR_DIE
	fi;
#endif
#ifdef ASYM
	if
	:: true
	:: STEP sleepers[me] == 0 -> buffered[me] = 1 OR_DIE;
	   STEP seq[CELL(me, me)] = E(me); at[me] = n[me]; buffered[me] = 0; goto await OR_DIE
	fi;
#endif
	STEP seq[CELL(me, me)] = E(me); at[me] = n[me] OR_DIE;			/* [2] */
	STEP if :: sleepers[me] == 0 -> goto await :: else fi OR_DIE;		/* [3] [4] */
	STEP wake_flag(me) OR_DIE;						/* [4] */
await:
	atomic { if :: on[me] == me -> on[me]++ :: else fi };
	if
	:: atomic { on[me] >= P -> on[me] = 0; goto read }
	:: atomic { on[me] < P }
	fi;
	STEP if :: seq[CELL(on[me], me)] == E(me) -> goto arrived :: else fi OR_DIE;	/* [p] */
look:
	STEP if								/* [v] */
#ifdef DROPWAKE
		:: revoked != 0 -> goto fail
#else
		:: revoked != 0 -> goto pass
#endif
		:: else
		fi OR_DIE;
	STEP ra = alive[on[me]] OR_DIE;						/* [l] */
	STEP rs = seq[CELL(on[me], me)];					/* [q] */
		if
#ifdef KEEPWAKE
		:: rs == E(me) -> goto arrived
#else
		:: rs == E(me) && ra != DIED -> goto arrived
		:: rs == E(me) && ra == DIED -> goto revoke
#endif
		:: rs != E(me) && ra != ALIVE && JUDGED -> goto revoke
		:: else
		fi OR_DIE;
	/* From here on rs is the old sequence number, ra what [c] expects of the alive word. */
#ifdef NOFENCEB
	if	/* [c] may read before [a] can be seen */
	:: true
	:: STEP waitv() OR_DIE;
	   STEP sleepers[on[me]]++; goto asleep OR_DIE
	fi;
#endif
	STEP sleepers[on[me]]++ OR_DIE;						/* [a] [b] */
#ifdef ASYM
#ifndef LIGHTB
	STEP !buffered[on[me]] -> skip OR_DIE;					/* [b] */
#endif
#endif
#ifdef KSTEPS
	STEP if :: seq[CELL(on[me], me)] == rs -> q[me] = QFLAG :: else -> goto awake fi OR_DIE;	/* [c] */
	STEP if :: alive[on[me]] == ra -> q[me] = q[me] | QALIVE :: else -> woken[me] = 1 fi OR_DIE;
	STEP if :: revoked == 0 -> q[me] = q[me] | QREVOKED :: else -> woken[me] = 1 fi OR_DIE;
#else
	STEP waitv() OR_DIE;							/* [c] */
#endif
asleep:
	STEP UP(me) -> CLEAR(me) OR_DIE;
awake:
	STEP sleepers[on[me]]--; rs = 0; ra = 0;				/* [d] */
#ifdef NOTEST
		slept = 1;
#endif
		goto look OR_DIE;
pass:
	STEP wake_revoked(); goto fail OR_DIE;
revoke:
	STEP cas_revoked(on[me]) OR_DIE;					/* [r] */
	STEP wake_revoked();
		if :: rs != E(me) -> goto fail :: else fi OR_DIE;
arrived:
	atomic {
		rs = 0; ra = 0; on[me]++;
#ifdef NOTEST
		slept = 0;
#endif
		goto await
	};

read:	/* all have arrived: read them all */
	STEP assert(at[on[me]] == n[me] || at[on[me]] == NEXT(n[me]));
		assert(pay[PAYCELL(on[me], me)] == E(me));
		on[me]++;
		if :: on[me] < P -> goto read :: else -> on[me] = 0 fi OR_DIE;
	atomic {
		if
		:: R == 0 || n[me] < R -> n[me] = NEXT(n[me]); goto round
		:: else -> goto leave
		fi
	};

fail:	/* No error without a cause. After it a rank may leave, or stay and never call again. */
	atomic {
		assert(killed || early); rs = 0; ra = 0; on[me] = 0;
#ifdef NOTEST
		slept = 0;
#endif
		if
		:: goto leave
		:: life[me] = RETURNED; n[me] = 0; goto out
		fi
	};
leave:
	STEP alive[me] = LEFT OR_DIE;						/* [e] */
	STEP wake_alive(me); life[me] = RETURNED; n[me] = 0; goto out OR_DIE;
dead:
	atomic {
		rs = 0; ra = 0;
#ifdef ASYM
		buffered[me] = 0;
#endif
#ifdef NOTEST
		slept = 0;
#endif
		life[me] = STOPPED;
		if :: fired[me] -> CLEAR(me) :: else fi;
		if :: q[me] == 0 -> on[me] = 0; n[me] = 0 :: else fi
	};
out:
	skip
}

#ifdef LINGER
#define KILL(i) \
	:: d_step { life[i] == RUN && kills < D -> life[i] = DOOMED; kills++; killed = 1 } \
	:: atomic { (life[i] == DOOMED || life[i] == STOPPED) && !fired[i] -> FIRE(i) }
#else
#define KILL(i) \
	:: atomic { life[i] == STOPPED && !fired[i] -> FIRE(i) }
#endif
#define FIRE(i) \
	fired[i] = 1; \
	if \
	:: life[i] == STOPPED -> CLEAR(i); on[i] = 0; n[i] = 0 \
	:: else \
	fi; \
	if \
	:: alive[i] == ALIVE -> alive[i] = DIED; wake_one_alive(i) \
	:: PENDING && alive[i] == LEFT -> wake_one_alive(i) \
	:: else \
	fi
#if SPURIOUS
#define SPUR(i) :: d_step { spurs < SPURIOUS && q[i] != 0 -> spurs++; WAKE(i, 0) }
#else
#define SPUR(i)
#endif

proctype Kernel() {
end:
	do
	:: d_step { kills < D -> kills = D }	/* nobody else is killed */
	KILL(0) KILL(1)
	SPUR(0) SPUR(1)
#if P > 2
	KILL(2) SPUR(2)
#endif
#if P > 3
	KILL(3) SPUR(3)
#endif
	od
}

#ifdef ZLEFT
#define ZCARES(i) (alive[i] != LEFT)
#else
#define ZCARES(i) 1
#endif
#define SEE(i) \
	:: d_step { \
		life[i] == STOPPED && fired[i] && !seen[i] -> seen[i] = 1; \
		if \
		:: ZCARES(i) -> won = (revoked == 0); cas_revoked(i); cares = 1 \
		:: else \
		fi }

proctype Zygote() {
	bit won, cares;
end:
	do
	SEE(0) SEE(1)
#if P > 2
	SEE(2)
#endif
#if P > 3
	SEE(3)
#endif
	:: cares ->
		d_step {
#ifdef WAKEIFWON
			if :: won -> wake_revoked() :: else fi;
#else
			wake_revoked();
#endif
			won = 0; cares = 0
		}
#if Z == 2
	:: atomic { won = 0; cares = 0; break }
#endif
	od
}

#define OVER(i) (life[i] == STOPPED || life[i] == RETURNED)
#if P == 2
#define ALLOVER (OVER(0) && OVER(1))
#elif P == 3
#define ALLOVER (OVER(0) && OVER(1) && OVER(2))
#else
#define ALLOVER (OVER(0) && OVER(1) && OVER(2) && OVER(3))
#endif

/* When nothing can move: all is over, or the time slices end, or somebody hangs. */
proctype Monitor() {
	do
	:: atomic {
		timeout ->
		if
		:: ALLOVER -> break
		:: else ->
			assert(ticks < SLICES);
			ticks++;
			d_step {
				TICK(0); TICK(1);
#if P > 2
				TICK(2);
#endif
#if P > 3
				TICK(3);
#endif
			}
		fi }
	od
}

#define START(i) seq[2 * i] = (M - 2 + 2) % M; seq[2 * i + 1] = (M - 1) % M; run Rank(i)

init {
	atomic {
		START(0); START(1);
#if P > 2
		START(2);
#endif
#if P > 3
		START(3);
#endif
		run Kernel();
#if Z
		run Zygote();
#endif
		run Monitor()
	}
}
