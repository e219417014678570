/// The coordinator as a process: the service behind a listening socket, its events in the log, its results in files.

import Adapters
import Checkpoints
import CoordinatorCore
import CoordinatorStore
import Logging
import Plan
import Primitives
import Programs
import Transport
import Wire

// `@unchecked Sendable`: everything that changes is used by `handle` and `tick` alone, which the listener calls one at a
// time under its own lock, and after its `run` has returned by the thread that called it.
final class CoordinatorHost: @unchecked Sendable {
    /// Seconds after the end of the run for which clients can still ask and be told.
    static let farewellSeconds = 15.0

    private let service: CoordinatorService
    private let store: SQLiteFederationStore
    private let listener: CoordinatorListener
    private let folder: RunFolder
    private let base: String
    private let headPlace: PEFTAdapter.HeadPlace
    private let logger: Logger
    private let json: Bool
    private let clock: @Sendable () -> Duration
    private var generator = SystemRandomNumberGenerator()

    /// What ended the process early.
    private var failure: Failure?
    private var outputsAreOld = true
    private var finishedAt: Duration?
    private var joinWasLogged = false
    /// The last line about waiting, and when to repeat it.
    private var waiting: (text: String, repeatAt: Duration, interval: Double) = ("", .zero, 0)
    /// Refusals that were logged lately, so that a client which asks again and again does not fill the log.
    private var refusals: [String: Duration] = [:]

    init(
        service: CoordinatorService, store: SQLiteFederationStore, listener: CoordinatorListener, folder: RunFolder, base: String,
        headPlace: PEFTAdapter.HeadPlace, logger: Logger, json: Bool, clock: @escaping @Sendable () -> Duration
    ) {
        self.service = service
        self.store = store
        self.listener = listener
        self.folder = folder
        self.base = base
        self.headPlace = headPlace
        self.logger = logger
        self.json = json
        self.clock = clock
        service.observer = { [unowned self] changes in observe(changes) }
    }

    /// Serves until the run is finished and told, or a signal arrives.
    ///
    /// - Throws: what the store or an output threw; `Failure(.interrupted)` that says what was kept
    func run() throws(Failure) {
        if let event = RunEvent(resuming: service.federation) { log(event) }
        if service.federation.phase == .finished {
            logger.info(
                "the run was finished before; clients that ask within \(Readable.duration(seconds: Self.farewellSeconds)) are told"
            )
        }
        try listener.run(tick: { self.tick() }, handler: { self.handle($0) })
        listener.close()
        if let failure { throw failure }
        if Interrupts.isInterrupted, finishedAt == nil { throw interruption() }
    }

    // MARK: - Called by the listener

    private func handle(_ request: [UInt8]) -> [UInt8] {
        guard failure == nil else { return Self.busy }
        joinWasLogged = false
        do throws(Failure) {
            let reply = try service.handle(request, at: clock(), newSession: generator.next())
            noteJoinOrRefusal(request, reply)
            return reply
        } catch {
            end(with: error)
            return Self.busy
        }
    }

    private func tick() {
        guard failure == nil else { return }
        let now = clock()
        do throws(Failure) {
            try dropForgotten()
            try service.tick(at: now)
            if outputsAreOld { try writeOutputs() }
            noteWaiting(at: now)
            guard service.federation.phase == .finished else { return }
            if finishedAt == nil {
                try export()
                finishedAt = now
            }
            let elapsed = (now - (finishedAt ?? now)) / .seconds(1)
            if service.federation.everyoneKnows(at: now) || elapsed > Self.farewellSeconds { listener.stop() }
        } catch {
            end(with: error)
        }
    }

    /// What is in memory is ahead of what is on the disk: only a new start is sound.
    private func end(with error: Failure) {
        failure = error
        listener.stop()
    }

    /// To a client whose request met a full disk or the like: it asks again, perhaps after a new start.
    private static let busy = Reply.refused(
        Refusal(
            code: .busy, message: "the coordinator cannot store anything now and is stopping: its own log says why",
            retryAfterMilliseconds: 5000)
    ).encoded()

    /// `forget` takes a name out of the file, perhaps while this process runs.
    private func dropForgotten() throws(Failure) {
        let names = Set(try store.memberNames())
        for name in service.federation.members.keys.sorted() where !names.contains(name) { try service.forget(name) }
    }

    // MARK: - Files

    private func writeOutputs() throws(Failure) {
        guard let stored = try store.load() else { return }
        try folder.writeMetrics(stored)
        try folder.writeRun(stored, base: base)
        outputsAreOld = false
    }

    private func export() throws(Failure) {
        let weights = try service.weights(afterRound: nil)
        try folder.writeAdapter(
            weights, maps: service.federation.maps, base: base, headPlace: headPlace, labels: service.federation.plan.labels)
        log(RunEvent("exported", "the adapter is in \(folder.path)/adapter", [.init("output", .string(folder.path))]))
    }

    private func interruption() -> Failure {
        let federation = service.federation
        // Whom a private round has is told to nobody.
        let kept = federation.plan.privacy == .client ? [] : federation.contributions.keys.sorted()
        if federation.attempt == nil, federation.records.isEmpty {
            return Failure(
                .interrupted, "stopped before the first round: who has joined is kept; the same command goes on from there")
        }
        let place =
            federation.attempt.map { "in round \($0.round) of \(federation.plan.rounds)" }
            ?? "after round \(federation.records.count) of \(federation.plan.rounds)"
        let contributions =
            federation.plan.privacy == .client
            ? "all closed rounds and what came for the open one"
            : kept.isEmpty
                ? "all closed rounds" : "all closed rounds and the contributions of \(kept.joined(separator: ", "))"
        return Failure(.interrupted, "stopped \(place): \(contributions) are kept; the same command goes on from there")
    }

    // MARK: - The log

    private func log(_ event: RunEvent) {
        logger.info("\(event.text)")
        if json { Console.json(event.json) }
    }

    private func observe(_ changes: [StoreChange]) {
        for change in changes {
            switch change {
            case .member: joinWasLogged = true
            case .chunk, .discardChunks, .traffic: continue
            default: break
            }
            switch change {
            case .run, .member, .forget, .closeRound, .updateRecord, .evaluation, .finished: outputsAreOld = true
            default: break
            }
            if let event = RunEvent(change, in: service.federation) { log(event) }
        }
    }

    private func noteJoinOrRefusal(_ request: [UInt8], _ reply: [UInt8]) {
        // Chunks are the bulk of the traffic and never of interest here.
        guard reply.count <= WireLimits.controlBodyBytes, let answer = try? Reply(decoding: reply) else { return }
        switch answer {
        case .welcome:
            if !joinWasLogged, case .hello(let hello)? = try? Request(decoding: request) {
                log(RunEvent("rejoined", "\(hello.name) is back", [.init("client", .string(hello.name))]))
            }
        case .refused(let refusal) where ![.unknownSession, .unknownBlob, .notSelected, .runFinished].contains(refusal.code):
            let now = clock()
            if let last = refusals[refusal.message], now - last < .seconds(300) { return }
            if refusals.count > 1000 { refusals = [:] }
            refusals[refusal.message] = now
            logger.warning("refused: \(refusal.message)")
            if json { Console.json(RunEvent("refused", refusal.message, [.init("reason", .string(refusal.message))]).json) }
        default: break
        }
    }

    /// Says what the run waits for when that changes, and then less and less often.
    private func noteWaiting(at now: Duration) {
        guard let event = RunEvent(waitingIn: service.federation, at: now) else {
            waiting = ("", now, 0)
            return
        }
        // The time to the deadline changes all the time; the rest of the sentence is what matters.
        let text = String(event.text.prefix { $0 != "(" })
        if text != waiting.text {
            let isRound = if case .round = service.federation.phase { true } else { false }
            waiting = (text, now + .seconds(60), 60)
            // An open round's line has just named its clients.
            if !isRound { log(event) }
        } else if now >= waiting.repeatAt {
            let interval = min(waiting.interval * 2, 3600)
            waiting = (text, now + .seconds(interval), interval)
            log(event)
        }
    }
}
