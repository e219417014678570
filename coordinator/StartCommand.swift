/// `tributary-coordinator start`: begins a run, or goes on with the one in the state.

import Adapters
import ArgumentParser
import Checkpoints
import CoordinatorCore
import CoordinatorStore
import FoundationEssentials
import Logging
import Plan
import PlanOptions
import Primitives
import Programs
import Transport

struct StartCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "start", abstract: "Begin a run, or go on with the one in the state.",
        discussion: "Every key of the configuration file is also a flag, and a flag wins. docs/configuration.md lists them.")

    @Option(help: ArgumentHelp("A YAML file of keys; deploy/federation.yaml is a sample.", valueName: "file"))
    var config: String?
    @Flag(help: "Write one JSON object for each event to standard output.")
    var json = false
    @Option(
        help: ArgumentHelp(
            "For tests: draws and noise under dp client follow from this number, and protect nobody.", valueName: "number"))
    var unsafeDpSeed: UInt64?
    @OptionGroup var options: StartOptions

    func run() throws {
        let logger = Console.makeLogger("coordinator")
        var options = options
        if let config { try ConfigurationFile(path: config).fill(&options) }
        let settings = try Settings(options)
        try self.options.plan.refuseUnused(by: settings.plan.strategy)
        try options.plan.refuseUnused(by: settings.plan.strategy, exceptDefaults: true)

        let folder = RunFolder(path: settings.output)
        try Folder.create(settings.output, for: "--output")
        let state = StateFile(path: settings.state)
        try state.createFolder()
        let lock = try state.lock()
        defer { withExtendedLifetime(lock) {} }

        // What can be wrong is found before what takes long: a large base is hashed last.
        let checkpoint = try CheckpointFolder(path: settings.model)
        let maps = checkpoint.configuration.linearMaps
        var plan = settings.plan
        let adapter = try settings.initialAdapter.map { (folder) throws(Failure) in try PEFTAdapter(folder: folder) }
        if let adapter { try plan.settleLabels(with: adapter) }
        plan.settleTask(for: checkpoint.configuration)
        try plan.validateTask(for: checkpoint.configuration)
        var initial: AdapterWeights?
        if let adapter { initial = try RunStart.weights(of: adapter, plan: &plan, maps: maps) }
        try plan.validate(for: checkpoint)
        guard unsafeDpSeed == nil || plan.privacy == .client else {
            throw Failure(
                .usage,
                "--unsafe-dp-seed is for dp client, whose noise the coordinator makes; under dp example give it to the clients")
        }
        try plan.settlePrivacy()
        let listener = try CoordinatorListener(listening: settings.listen)
        let bytes = checkpoint.weightFiles.reduce(0) { $0 + fileSize($1) }
        if bytes > 1_000_000_000 {
            logger.info(
                "computing the digest of \(Readable.bytes(bytes)) in \(settings.model); it is kept in \(state.folder) for the next start"
            )
        }
        plan.tokenizerDigest = try checkpoint.tokenizerDigest()
        plan.baseDigest = try checkpoint.baseDigest(cache: state.folder)
        try state.rememberModel(settings.model)

        let store = try SQLiteFederationStore(path: settings.state)
        let began = ContinuousClock.now
        let clock: @Sendable () -> Duration = { ContinuousClock.now - began }
        var generator = SystemRandomNumberGenerator()
        let service = try CoordinatorService(
            store: store, plan: plan, maps: maps, start: try RunStart(plan: plan, maps: maps, initial: initial),
            newRunID: newRunID(&generator), noise: CoordinatorNoise(seed: unsafeDpSeed), at: clock(), stopwatch: clock)
        if let note = try plan.rankCapNote(maps: maps) { logger.notice("\(note)") }
        if service.federation.hasUnsafeNoise { logger.warning("privacy guarantee: \(RunFolder.unsafeNotice)") }
        let host = CoordinatorHost(
            service: service, store: store, listener: listener, folder: folder, base: absolutePath(settings.model),
            headPlace: .init(checkpoint.configuration), logger: logger, json: json, clock: clock)
        try Interrupts.watch { listener.stop() }
        logger.info(
            "run \(service.federation.runID): \(plan.strategy.rawValue), \(plan.rounds) rounds, base \(plan.baseDigest.short); listening on \(listener.address)"
        )
        if json {
            Console.json(
                RunEvent(
                    "listening", "",
                    [
                        .init("run", .string(service.federation.runID)), .init("address", .string(listener.address.description)),
                        .init("strategy", .string(plan.strategy.rawValue)), .init("rounds", .integer(plan.rounds)),
                        .init("base_digest", .string(plan.baseDigest.description)),
                    ]
                ).json)
        }
        try host.run()
    }

    private func newRunID(_ generator: inout some RandomNumberGenerator) -> String {
        let digits = String(generator.next() as UInt64, radix: 16)
        return String(repeating: "0", count: 16 - digits.utf8.count) + digits
    }

    private func fileSize(_ path: String) -> Int {
        ((try? FileManager.default.attributesOfItem(atPath: path))?[.size] as? Int) ?? 0
    }
}
