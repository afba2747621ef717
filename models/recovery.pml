/*
 * recovery.pml: ranks ask their zygote for a new epoch or an agreement, with deaths at any point.
 *
 * The exchanges of an epoch use one of two halves, by parity of its number. One word "revoked" says
 * which epoch it is, and whether it has ended: clean(e) or ended(e). The zygote's record holds the
 * epoch, its members, the outcome, who took part, and "decided", the number of the last decision.
 * Each rank has a petition: a number, and a wish, by parity of the number. The steps:
 *
 *   EXCHANGE in epoch e (flagline.pml has it in small steps)
 *     [x]  revoked is not clean(e): wake all on it, then Err
 *     [y]  my flag in half e & 1 = this exchange; then wake all on it
 *     [w]  each peer in turn: its flag is set: next peer; revoked is not clean(e): wake all on it,
 *          then Err; its alive word says DIED or FAILED: [r], then Err; LEFT: Err; else sleep on
 *          flag, alive and revoked
 *   REVOKE epoch e
 *     [r]  CAS revoked clean(e) -> ended(e), then wake all on it, whoever won
 *   ASK
 *     [0]  shrink, respawn: [r], as others may wait for this rank in a call of e
 *     [1]  number = my petition's number + 1; my wish, by parity of the number
 *     [2]  my petition's number = number                            (release; then ring the bell)
 *     [3]  sleep on decided and on the zygote's alive word until decided == number, or Err
 *     [4]  copy epoch, members and outcome; who took part; their wishes, if a report needs them
 *   FAIL, LEAVE
 *     [f]  alive = FAILED, wake all on it, [r] of my epoch, exit
 *     [e]  alive = LEFT, wake all on it, exit
 *   KERNEL, after a kill
 *     [k]  an alive word that holds a thread's id says DIED now, and ONE sleeper on it is woken;
 *          some time later, when no thread is left, the pidfd is readable
 *   ZYGOTE, once it has seen a pidfd, or heard the bell
 *     [z]  pidfd of rank r: alive = DIED, unless it says something final; wake all on it; unless r
 *          had said LEFT or FAILED, [r] of the epoch that is now
 *     [d]  wait until each running member has asked for decision decided + 1, or has said LEFT or
 *          FAILED; for a respawn, until each process that has not asked is gone, member or not
 *     [h]  shrink, respawn: ready half e + 1; epoch and members; revoked = clean(e + 1), wake all
 *     [n]  respawn: the alive words of all who are to be forked = NEW, before the first fork
 *     [p]  for each of them: its petition's number = this decision's; fork
 *     [u]  a fork failed: kill those already forked and wait for their end; [h] for e + 2 with
 *          those who asked, and [r] of it
 *     [o]  outcome and who took part; decided += 1; wake all on it
 *
 * A rank may be killed before each of these steps; each store, wake and system call is a step of
 * its own. To look and to fall asleep is one step: flagline.pml has shown that no wake is lost in
 * between. Until the pidfd is readable, other threads of a victim may go on with its exchange.
 *
 * All programs are alike: after an Err a rank asks for what HEAL says, if respawn is refused for
 * shrink, and then goes on with the exchanges of its epoch; so it is an error if wishes differ.
 *
 * Checked:
 *   Whenever nothing can move any more, each process is gone: every call has returned.
 *   No half is readied while someone is in an exchange of it, or a victim may be; or written, or
 *   read, for another epoch than it was readied for. Nobody passes an exchange before all members
 *   of the same epoch have come to it.
 *   An epoch is ended by those who are in it, or the zygote; nobody's call ends with another epoch.
 *   When a rank learns of a decision, its old handle will not wait any more.
 *   All who are in an epoch have the same members. Whoever returns from a decision took part in it;
 *   all are told the same set of those who did (an agreement's value is made of theirs).
 *   The record is whole when it is read, and not yet the next one; so are the wishes of the others.
 *   Nobody is held dead who is about to be forked; a slot has one process at a time.
 *   Numbers of epochs and decisions wrap at 4.
 *
 * Size      P ranks (2..4), R exchanges in each epoch, D kills
 * World     HEAL=1 shrink, 2 respawn, 3 shrink and then respawn; AGREE: agree first
 *           FAILS=n ranks fail in words, EARLY=n leave early, UPSETS=n ask without an Err (with
 *           AGREE: revoke, as for a deadline), NOFORK=n forks fail; FORKS: from the first forks on
 *           ZDEATH: the zygote may be killed before any of its steps, and takes nobody with it
 *           SLICES=n: at most n times, when all is still, the time slices of all sleepers end
 *           ONEHALF: one half for all epochs
 *           COUNTDEAD: who has asked and is known to be dead is a member of the next epoch
 * Controls  ATALIVE: [z] as soon as [k] is done; MEMBERS: [d] waits for processes of members only
 *           HASTY: [d] does not wait; NONUMBER: [d] takes any petition for one, whatever its number
 *           NOEPOCH: clean and ended are the same words in all epochs; PLAIN: [r] without a CAS
 *           TOLDFIRST: decided += 1 before [h]; NOREADY: [h] leaves the half as it is
 *           LATENEW: NEW only just before each fork
 *           EARLYASK: number in [1] is decided + 1, and [p] leaves the last decision's
 *           WISHLAST: [2] before [1]; SAMEASKS: one wish for both parities
 *           KEEPON: no [0]; ALONE: [3] does not look at the zygote; NOBURY: [z] does not wake
 */
#ifndef P
#define P 3
#endif
#ifndef R
#define R 1
#endif
#ifndef D
#define D 1
#endif
#ifndef HEAL
#define HEAL 1
#endif
#ifndef FAILS
#define FAILS 0
#endif
#ifndef EARLY
#define EARLY 0
#endif
#ifndef UPSETS
#define UPSETS 0
#endif
#ifndef NOFORK
#define NOFORK 0
#endif
#ifndef SLICES
#define SLICES 0
#endif
#ifdef ZDEATH
#define ZKILLS 1
#else
#define ZKILLS 0
#endif

/* alive words; from DIED on the rank is gone, from FAILED on it has said so */
#define NEW 0
#define ALIVE 1
#define DIED 2
#define FAILED 3
#define LEFT 4
/* life of a slot's process: what is true of it */
#define RUN 0
#define DOOMED 1	/* killed by the zygote, not stopped yet */
#define STOPPED 2
#define FIRED 3		/* [k] done; other threads may still write */
#define GONE 4		/* the pidfd is readable */
/* wishes */
#define AGREEMENT 1
#define SHRINK 2
#define RESPAWN 3
/* outcomes */
#define GRANTED 0
#define SOMELEFT 1
#define UNSTARTED 2
/* what a sleeper sleeps on */
#define QEXCHANGE 1
#define QDECIDED 2

#define NONE 7

#if P == 2
#define EACH(F) F(0) F(1)
#define ANY(F) F(0) F(1)
#define EVERY(F) (F(0) && F(1))
#define FIRSTOF(F, G) (F(0) -> G(0) : (F(1) -> G(1) : 0))
#define MASK(F) (F(0) | F(1) << 1)
#elif P == 3
#define EACH(F) F(0) F(1) F(2)
#define ANY(F) F(0) F(1) F(2)
#define EVERY(F) (F(0) && F(1) && F(2))
#define FIRSTOF(F, G) (F(0) -> G(0) : (F(1) -> G(1) : (F(2) -> G(2) : 0)))
#define MASK(F) (F(0) | F(1) << 1 | F(2) << 2)
#else
#define EACH(F) F(0) F(1) F(2) F(3)
#define ANY(F) F(0) F(1) F(2) F(3)
#define EVERY(F) (F(0) && F(1) && F(2) && F(3))
#define FIRSTOF(F, G) (F(0) -> G(0) : (F(1) -> G(1) : (F(2) -> G(2) : (F(3) -> G(3) : 0))))
#define MASK(F) (F(0) | F(1) << 1 | F(2) << 2 | F(3) << 3)
#endif
#define ALLRANKS ((1 << P) - 1)
#define HAS(mask, i) (((mask) >> (i)) & 1)
#define NEXT(x) (((x) + 1) & 3)

#ifdef ONEHALF
#define HALF(e) 0
#else
#define HALF(e) ((e) & 1)
#endif
#define LINE(i, e) (P * HALF(e) + (i))
#ifdef NOEPOCH
#define CLEAN(e) 0
#else
#define CLEAN(e) (2 * (e))
#endif
#ifdef SAMEASKS
#define ASKS(i, number) (2 * (i))
#else
#define ASKS(i, number) (2 * (i) + ((number) & 1))
#endif

byte flag[2 * P];	/* the exchange a rank has come to, by half */
byte alive[P];
byte revoked;
/* petitions */
byte number[P];
byte asks[2 * P];	/* wish, and (ghost) the number it is for */
/* the record */
byte decided;
byte epoch;
byte members;
byte outcome;
byte agreed;
byte zalive = ALIVE;

/* ranks' own; the kernel knows q and on as the arguments of futex_waitv */
byte ep[P];		/* epoch of its handle */
byte mem[P];		/* members, as copied */
byte n[P];		/* exchange */
byte on[P];		/* peer it awaits */
byte q[P];
bit busy[P];		/* ghost: in an exchange */
byte life[P];
bit slot[P];		/* zygote's own: a process not yet collected */

/* ghosts */
byte half[2];		/* the epoch that the half was readied for */
byte now;		/* the epoch that is now */
byte written;		/* the decision that the record is for, NONE while it is written */
byte unforked;		/* ranks about to be forked */
byte got[2];		/* who took part, as seen by the first who returned */

/* what has been allowed to happen so far */
byte kills, fails, earlies, upsets, nofork, zkills, ticks;

#define SPOKEN(i) (alive[i] >= FAILED)

#define WAKEFLAG(i) \
	if \
	:: q[i] == QEXCHANGE && on[i] == me && HALF(ep[i]) == HALF(ep[me]) -> q[i] = 0 \
	:: else \
	fi;
#define WAKEALIVE(i) if :: q[i] == QEXCHANGE && on[i] == gone -> q[i] = 0 :: else fi;
#define WAKEREVOKED(i) if :: q[i] == QEXCHANGE -> q[i] = 0 :: else fi;
#define WAKEDECIDED(i) if :: q[i] == QDECIDED -> q[i] = 0 :: else fi;

inline wake_flag() { d_step { EACH(WAKEFLAG) skip } }
inline wake_alive(gone) { d_step { EACH(WAKEALIVE) skip } }
inline wake_revoked() { d_step { EACH(WAKEREVOKED) skip } }
inline wake_decided() { d_step { EACH(WAKEDECIDED) skip } }

inline revoke(e) {
	if
#ifdef PLAIN
	:: true ->
#else
	:: revoked == CLEAN(e) ->
#endif
		assert(now == e);	/* a late one does not end a later epoch */
		revoked = CLEAN(e) + 1
	:: else
	fi
}

/* The call of a rank is to end: only because its own epoch has ended. */
#define ENDED (revoked != CLEAN(ep[me]))
#define CAUSE assert(now == ep[me])

/* All who are in an epoch have the same members. */
#define SAME(i) \
	assert(i == me || life[i] == GONE || mem[i] == 0 || ep[i] != ep[me] || mem[i] == mem[me]);
/* The others' wishes are those for this decision. */
#define WISHES(i) assert(!HAS(agreed, i) || asks[ASKS(i, mine)] >> 2 == mine);

#ifdef EARLYASK
#define MYNEXT NEXT(decided)
#else
#define MYNEXT NEXT(number[me])
#endif

/* Each step of a rank is STEP ... OR_DIE: the step, or its death in place of it. */
#define STEP if :: atomic {
#define OR_DIE } :: atomic { \
	life[me] == DOOMED || kills < D -> \
	if :: life[me] == DOOMED :: else -> kills++ fi; \
	goto dead } fi

proctype Rank(byte me) {
	byte mine;	/* the number of the decision asked for */
	byte wish;
	bit retreat;	/* respawn was refused */

#ifndef FORKS
	goto top;
#endif
fresh:
	STEP ep[me] = epoch; alive[me] = ALIVE OR_DIE;
	STEP assert(ep[me] == epoch && HAS(members, me));
		mem[me] = members; n[me] = 0;
		d_step { EACH(SAME) skip } OR_DIE;
top:
	if	/* [x] comes first: pan takes its else to mean that no option before it can be had */
	:: STEP if :: ENDED -> CAUSE; goto waking :: else -> busy[me] = 1 fi OR_DIE
	:: atomic { fails < FAILS -> fails++; goto fail }
	:: atomic { earlies < EARLY -> earlies++; goto leave }
#ifdef AGREE
	:: atomic { upsets < UPSETS -> upsets++; goto revoking }
#else
	:: atomic { upsets < UPSETS -> upsets++; goto ask }
#endif
	fi;
	STEP assert(half[HALF(ep[me])] == ep[me]);				/* [y] */
		n[me]++; flag[LINE(me, ep[me])] = n[me] OR_DIE;
	STEP wake_flag() OR_DIE;
await:
	atomic {
		if
		:: on[me] == P ->
			on[me] = 0; busy[me] = 0;
			if :: n[me] == R -> goto leave :: else -> goto top fi
		:: on[me] != P && (on[me] == me || !HAS(mem[me], on[me])) -> on[me]++; goto await
		:: else
		fi
	};
look:
	STEP q[me] == 0 ->							/* [w] */
		if
		:: flag[LINE(on[me], ep[me])] >= n[me] ->
			assert(half[HALF(ep[me])] == ep[me]);
			assert(ep[on[me]] == ep[me] && n[on[me]] >= n[me]);	/* it has come */
			on[me]++; goto await
		:: else ->
			if
			:: ENDED -> CAUSE; goto waking
			:: !ENDED && alive[on[me]] >= DIED ->
				assert(!HAS(unforked, on[me]));	/* it lives, or will */
				if
				:: alive[on[me]] == LEFT -> goto ask
				:: else
				fi
			:: else -> q[me] = QEXCHANGE; goto look
			fi
		fi OR_DIE;
revoking:
	STEP revoke(ep[me]) OR_DIE;						/* [r] */
waking:
	STEP wake_revoked() OR_DIE;
ask:
	atomic {
		busy[me] = 0; on[me] = 0;
		if
		:: wish == 0 ->
			retreat = 0;
#ifdef AGREE
			wish = AGREEMENT
		:: wish == AGREEMENT ->
#endif
			wish = (HEAL == 2 -> RESPAWN : SHRINK)
		:: else
		fi;
#ifndef KEEPON
		if
		:: wish != AGREEMENT && !ENDED -> goto revoking			/* [0] */
		:: else
		fi
#endif
	};
	goto asking;

	/* From here on the petition stands. */
asking:
	STEP mine = MYNEXT;							/* [1] */
#ifdef WISHLAST
		number[me] = mine OR_DIE;
	STEP asks[ASKS(me, mine)] = wish | mine << 2 OR_DIE;
#else
		asks[ASKS(me, mine)] = wish | mine << 2 OR_DIE;
	STEP number[me] = mine OR_DIE;						/* [2] */
#endif
sleep:
	STEP q[me] == 0 ->							/* [3] */
		if
		:: decided == mine
#ifndef ALONE
		:: decided != mine && zalive == DIED -> wish = 0; mine = 0; goto fail
#endif
		:: else -> q[me] = QDECIDED; goto sleep
		fi OR_DIE;
	STEP assert(written == mine);						/* [4] */
		if
		:: outcome == GRANTED && wish != AGREEMENT ->
			assert(revoked != CLEAN(ep[me]));	/* the old handle never waits */
			ep[me] = epoch; mem[me] = members; n[me] = 0
		:: else
		fi OR_DIE;
	STEP assert(written == mine);
		assert(HAS(agreed, me));	/* it took part */
		d_step { EACH(WISHES) EACH(SAME) skip };
		if
		:: got[mine & 1] == 0 -> got[mine & 1] = agreed
		:: else -> assert(got[mine & 1] == agreed)
		fi;
		mine = 0;
		if
		:: outcome != GRANTED -> wish = SHRINK; retreat = 1; goto next
		:: outcome == GRANTED && wish == AGREEMENT -> goto ask
		:: outcome == GRANTED && wish == SHRINK && HEAL == 3 && !retreat -> wish = RESPAWN; goto next
		:: else -> wish = 0; retreat = 0; goto top
		fi OR_DIE;
next:
	atomic { if :: !ENDED -> goto revoking :: else -> goto asking fi };

fail:
	STEP alive[me] = FAILED OR_DIE;						/* [f] */
	STEP wake_alive(me) OR_DIE;
	STEP revoke(ep[me]) OR_DIE;
	STEP wake_revoked(); life[me] = GONE; goto rest OR_DIE;
leave:
	STEP alive[me] = LEFT OR_DIE;						/* [e] */
	STEP wake_alive(me); life[me] = GONE; goto rest OR_DIE;
dead:
	atomic { life[me] = STOPPED };
rest:	/* this process is at its end; its place in the model serves the next one, after [p] */
	atomic { wish = 0; mine = 0; retreat = 0; if :: life[me] == GONE -> mem[me] = 0 :: else fi };
end:
	atomic { life[me] == RUN || life[me] == DOOMED -> goto fresh }
}

#define ONE(i) :: q[i] == QEXCHANGE && on[i] == who -> q[i] = 0
#define ONEASKING(i) :: q[i] == QDECIDED -> q[i] = 0
#define DIE(i) \
	:: atomic { \
		life[i] == STOPPED -> \
		q[i] = 0; \
		if \
		:: alive[i] == ALIVE -> \
			alive[i] = DIED; life[i] = FIRED; mem[i] = 0; on[i] = 0; who = i; \
			if ANY(ONE) :: else fi; \
			who = 0 \
		:: else -> mem[i] = 0; on[i] = 0; life[i] = GONE \
		fi } \
	:: atomic { life[i] == FIRED -> life[i] = GONE }

proctype Kernel() {
	byte who;
end:
	do
	:: d_step { kills < D -> kills = D }	/* nobody else is killed */
	EACH(DIE)
	od
}

#ifdef ATALIVE
#define COLLECTS FIRED
#else
#define COLLECTS GONE
#endif
#define BURY(i) \
	:: atomic { slot[i] && life[i] >= COLLECTS -> slot[i] = 0; who = i; goto bury }

#define NUMBER NEXT(decided)
#ifdef NONUMBER
#define ASKED(i) (slot[i] && HAS(members, i) && number[i] != 0)
#elif defined(COUNTDEAD)
#define ASKED(i) (HAS(members, i) && number[i] == NUMBER)
#else
#define ASKED(i) (slot[i] && HAS(members, i) && number[i] == NUMBER)
#endif
#define WISH(i) (asks[ASKS(i, NUMBER)] & 3)
#define FIRST FIRSTOF(ASKED, WISH)
#ifdef MEMBERS
#define AWAITED(i) HAS(members, i)
#else
#define AWAITED(i) 1
#endif
#ifdef HASTY
#define LETSGO(i) 1
#else
#define LETSGO(i) (!slot[i] || ASKED(i) || \
	!((HAS(members, i) && !SPOKEN(i)) || (AWAITED(i) && FIRST == RESPAWN)))
#endif
#define ALIKE(i) assert(!ASKED(i) || WISH(i) == wish);
#define ISLEFT(i) (!HAS(set, i) && alive[i] == LEFT)
#define YES(i) 1
#define UNUSED(i) assert(!(busy[i] && life[i] != GONE && HALF(ep[i]) == HALF(e)));
#ifdef NOREADY
#define READY(i)
#else
#define READY(i) if :: HAS(whom, i) -> flag[LINE(i, e)] = 0 :: else fi;
#endif
#define RENEW(i) if :: HAS(unforked, i) -> alive[i] = NEW :: else fi;
#define KILLNEW(i) \
	if \
	:: slot[i] && !HAS(set, i) && life[i] == RUN -> life[i] = DOOMED \
	:: else \
	fi;
#define ENDNEW(i) (!slot[i] || HAS(set, i) || life[i] == GONE)
#define FORGET(i) if :: !HAS(set, i) -> slot[i] = 0 :: else fi;

/* Each step of the zygote is Z ... OR_ZDIE. */
#define ZDIES :: atomic { zkills < ZKILLS -> zkills++; goto killed }
#define Z if :: atomic {
#define OR_ZDIE } ZDIES fi

#ifdef EARLYASK
#define CLEARED decided
#else
#define CLEARED NUMBER
#endif

proctype Zygote() {
	byte who, e, wish;
	byte set;	/* who has asked */
	byte whom;	/* members of the epoch that begins */
	bit back;	/* a fork failed */
end:
idle:
	if
	EACH(BURY)
	:: atomic {
		FIRST != 0 && EVERY(LETSGO) ->					/* [d] */
		wish = FIRST; set = MASK(ASKED);
		d_step { EACH(ALIKE) skip };
		written = NONE; got[NUMBER & 1] = 0;
		if
		:: wish == AGREEMENT -> outcome = GRANTED; goto tell
		:: wish == RESPAWN && FIRSTOF(ISLEFT, YES) -> outcome = SOMELEFT; goto tell
		:: else -> e = NEXT(epoch); whom = (wish == SHRINK -> set : ALLRANKS)
		fi }
	ZDIES
	fi;
	outcome = GRANTED;
#ifdef TOLDFIRST
	Z decided = NUMBER OR_ZDIE;
#endif
ready:
	Z d_step { EACH(UNUSED) half[HALF(e)] = NONE } OR_ZDIE;			/* [h] */
	Z d_step { EACH(READY) half[HALF(e)] = e } OR_ZDIE;
	Z epoch = e; members = whom OR_ZDIE;
	Z revoked = CLEAN(e); now = e OR_ZDIE;
	Z wake_revoked() OR_ZDIE;
	if
	:: atomic { back -> back = 0; outcome = UNSTARTED }
		Z revoke(e) OR_ZDIE;
		Z wake_revoked(); goto tell OR_ZDIE
	:: atomic { !back && wish == SHRINK -> goto tell }
	:: atomic { !back && wish != SHRINK -> unforked = ALLRANKS & ~set }
	fi;
#ifndef LATENEW
	Z d_step { EACH(RENEW) skip } OR_ZDIE;					/* [n] */
#endif
forking:
	atomic {
		if
		:: who == P -> who = 0; goto tell
		:: who != P && !HAS(unforked, who) -> who++; goto forking
		:: else
		fi
	};
	Z assert(!slot[who] && life[who] == GONE);	/* one process of a slot at a time */
		number[who] = CLEARED;						/* [p] */
#ifdef LATENEW
		alive[who] = NEW
#endif
		OR_ZDIE;
	if
	:: atomic {
		unforked = unforked & ~(1 << who);
		ep[who] = 0; mem[who] = 0; n[who] = 0; on[who] = 0; busy[who] = 0;
		slot[who] = 1; life[who] = RUN;
		who++; goto forking }
	:: atomic { nofork < NOFORK -> nofork++; who = 0; unforked = 0 }
	ZDIES
	fi;
	Z d_step { EACH(KILLNEW) skip } OR_ZDIE;				/* [u] */
	Z EVERY(ENDNEW) ->
		d_step { EACH(FORGET) skip };
		e = NEXT(e); whom = set; back = 1; goto ready OR_ZDIE;

tell:
	Z agreed = set; written = NUMBER OR_ZDIE;				/* [o] */
#ifndef TOLDFIRST
	Z decided = NUMBER OR_ZDIE;
#endif
	Z wake_decided(); wish = 0; set = 0; whom = 0; e = 0; goto idle OR_ZDIE;

bury:
	Z if									/* [z] */
		:: alive[who] < DIED -> alive[who] = DIED
		:: else
		fi OR_ZDIE;
#ifndef NOBURY
	Z wake_alive(who) OR_ZDIE;
#endif
	Z if
		:: SPOKEN(who) -> who = 0; goto idle
		:: else -> who = 0; revoke(epoch)
		fi OR_ZDIE;
	Z wake_revoked(); goto idle OR_ZDIE;

killed:	/* [k] */
	atomic {
		zalive = DIED;
		if ANY(ONEASKING) :: else fi
	}
}

#define OVER(i) (life[i] == GONE)
#define TICK(i) q[i] = 0;

/* When nothing can move: all is over, or the time slices end, or somebody hangs. */
proctype Monitor() {
	do
	:: atomic {
		timeout ->
		if
		:: EVERY(OVER) -> break
		:: else ->
			assert(ticks < SLICES);
			ticks++;
			d_step { EACH(TICK) skip }
		fi }
	od
}

#ifdef FORKS
#define START(i) slot[i] = 1; run Rank(i);
#else
#define START(i) slot[i] = 1; alive[i] = ALIVE; mem[i] = ALLRANKS; run Rank(i);
#endif

init {
	atomic {
		members = ALLRANKS;
		EACH(START)
		run Kernel();
		run Zygote();
		run Monitor()
	}
}
