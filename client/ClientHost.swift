/// The client as a process: one step after the other until the run is finished, each told to the log.

import ClientCore
import Logging
import Plan
import Primitives
import Programs
import UpdateCodec
import Wire

final class ClientHost {
    private var client: FederatedClient
    private let storage: ClientFolder
    private let logger: Logger
    private let json: Bool
    /// Whether noise follows from a number that was given for tests.
    private let isUnsafe: Bool
    private var waiting = ""
    private var runID: String?

    init(
        identity: ClientIdentity, channel: ProcessChannel, storage: ClientFolder, work: any LocalWork, privacy: ClientPrivacy,
        logger: Logger, json: Bool
    ) {
        var generator = SystemRandomNumberGenerator()
        client = FederatedClient(
            identity: identity, channel: channel, storage: storage,
            work: work, nonce: generator.next(), privacy: privacy)
        self.storage = storage
        isUnsafe = privacy.unsafeSeed != nil
        self.logger = logger
        self.json = json
    }

    /// Takes part until the run is finished.
    ///
    /// - Throws: what ended it early; `Failure(.interrupted)` says what was kept
    func run() throws(Failure) {
        var generator = SystemRandomNumberGenerator()
        do throws(Failure) {
            while true {
                guard !Interrupts.isInterrupted else { throw Failure(.interrupted, "stopped") }
                switch try client.step() {
                case .worked(let event):
                    waiting = ""
                    log(event)
                case .wait(let milliseconds, let reason):
                    if reason != waiting {
                        logger.info("\(reason)")
                        write("waiting", [.init("reason", .string(reason))])
                        waiting = reason
                    }
                    // Up to a quarter more, so that clients do not ask in step.
                    _ = Interrupts.sleep(seconds: Double(milliseconds) / 1000 * Double.random(in: 1...1.25, using: &generator))
                case .finished(let reason):
                    logger.info("finished: \(reason)")
                    write("finished", [.init("reason", .string(reason))])
                    client.leave(reason: "finished")
                    return
                }
            }
        } catch {
            let ended = Interrupts.isInterrupted ? interruption(error) : error
            client.leave(reason: String(ended.message.prefix(500)))
            throw ended
        }
    }

    private func interruption(_ failure: Failure) -> Failure {
        let place = failure.status == .interrupted && failure.message.hasPrefix("stopped") ? failure.message : "stopped"
        var kept = "this client's place in the run is kept in \(storage.path)"
        if let runID, let record = try? storage.record(run: runID), let pending = record.pending {
            kept = "the contribution to round \(pending.round) is kept in \(storage.path) and will be sent, not trained again"
        }
        return Failure(.interrupted, "\(place): \(kept); the same command goes on")
    }

    // MARK: - The log

    private func write(_ event: String, _ members: [JSONValue.Member]) {
        if json { Console.json(.object([.init("event", .string(event))] + members)) }
    }

    private func log(_ event: ClientEvent) {
        switch event {
        case .joined(let run, let rank, let plan):
            runID = run
            logger.info(
                "joined run \(run): \(plan.strategy.rawValue), rank \(rank), \(plan.rounds) rounds of \(plan.localSteps) steps")
            write(
                "joined",
                [
                    .init("run", .string(run)), .init("strategy", .string(plan.strategy.rawValue)), .init("rank", .integer(rank)),
                    .init("rounds", .integer(plan.rounds)), .init("compress", .string(plan.compress.description)),
                    .init("dp", .string(plan.privacy.rawValue)),
                ] + (isUnsafe ? [.init("privacy_guarantee", .string("none: the noise follows from --unsafe-dp-seed"))] : []))
        case .contributed(let round, let trainLoss, let seconds, let bytes, let status):
            let outcome = status == .dropped ? ", which came too late" : ""
            let training =
                trainLoss.map {
                    "loss \(Readable.decimal($0, 4))" + (seconds.map { " in \(Readable.duration(seconds: $0))" } ?? "") + "; "
                }
                ?? ""
            logger.info(
                "round \(round): \(training)sent \(Readable.bytes(bytes))\(outcome)"
            )
            write(
                "contributed",
                [
                    .init("round", .integer(round)), .init("train_loss", .optional(trainLoss)),
                    .init("seconds", .optional(seconds)),
                    .init("bytes", .integer(bytes)), .init("status", .string("\(status)")),
                ])
        case .evaluated(let round, let result):
            let loss = result.lossSum / Double(max(1, result.targetTokens))
            let matches = result.exactMatches.map { ", exact match \($0) of \(result.examples)" } ?? ""
            let tokens = result.labelCounts == nil ? "\(result.targetTokens) tokens" : "\(result.examples) examples"
            let accuracy = result.labelCounts?.accuracy.map { ", accuracy \(Readable.decimal($0 * 100, 2)) %" } ?? ""
            logger.info("after round \(round): evaluated loss \(Readable.decimal(loss, 4)) on \(tokens)\(matches)\(accuracy)")
            write(
                "evaluated",
                [
                    .init("round", .integer(round)), .init("loss", .optional(loss)),
                    .init("target_tokens", .integer(result.targetTokens)),
                    .init("examples", .integer(result.examples)),
                    .init("exact_matches", result.exactMatches.map(JSONValue.integer) ?? .null),
                    .init("accuracy", .optional(result.labelCounts?.accuracy)),
                    .init("macro_f1", .optional(result.labelCounts?.macroF1)),
                ])
        case .started(let bytes):
            logger.info("sent the run's start, \(Readable.bytes(bytes))")
            write("started", [.init("bytes", .integer(bytes))])
        case .abandoned(let round, let reason):
            logger.info("round \(round) was left: \(reason)")
            write("abandoned", [.init("round", .integer(round)), .init("reason", .string(reason))])
        case .rejoining(let reason):
            logger.info("joining again: \(reason)")
            write("rejoining", [.init("reason", .string(reason))])
        }
    }
}
