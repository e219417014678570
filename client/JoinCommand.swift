/// `tributary-client join`: takes part in a run until it is finished.

import ArgumentParser
import Checkpoints
import ClientCore
import ClientEngine
import Logging
import Primitives
import Programs
import Transport
import Wire

struct JoinCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "join", abstract: "Take part in a run until it is finished.",
        discussion: """
            The data never leaves this machine: the coordinator receives trained adapter values, their loss and counts. \
            A killed client goes on where it was when the same command runs again.
            """)

    @Argument(help: ArgumentHelp("Where the coordinator listens.", valueName: "tcp://HOST:PORT"))
    var coordinator: String
    @Option(help: "This client's name in the run: letters, digits, - _ . and at most 64 of them.")
    var name: String
    @Option(
        help: ArgumentHelp(
            "The base model's folder, or a GGUF file: the same checkpoint as the coordinator's.", valueName: "folder"))
    var model: String
    @Option(
        help: ArgumentHelp(
            "The model from which a quantized base was made, unquantized: for runs with start loftq, one client needs it.",
            valueName: "folder"))
    var unquantizedModel: String?
    @Option(help: ArgumentHelp("Training examples, JSONL or CSV.", valueName: "file"))
    var data: String
    @Option(help: ArgumentHelp("Held-out examples, on which each round's adapter is evaluated.", valueName: "file"))
    var evalData: String?
    @Option(help: ArgumentHelp("The field or column of the text, if it is not called text.", valueName: "field"))
    var textField: String?
    @Option(help: ArgumentHelp("classify: the field or column of the label (default: label).", valueName: "field"))
    var labelField: String?
    @Option(help: ArgumentHelp("A known chat template's name, in place of the model's own.", valueName: "name"))
    var chatTemplate: String?
    @Option(help: ByteSize.memoryLimitHelp)
    var memoryLimit: ByteSize?
    @Option(help: "The largest rank that this machine can train (flora).")
    var maxRank: Int?
    @Option(
        help: ArgumentHelp(
            "What this client keeps between starts (default: a folder under ~/.local/state/tributary for each coordinator and name).",
            valueName: "folder"))
    var state: String?
    @Option(
        help: ArgumentHelp("Digests of base models; may be shared by clients (default: cache in --state).", valueName: "folder"))
    var cache: String?
    @Option(help: ArgumentHelp("End when the coordinator was out of reach for so long (default: never).", valueName: "seconds"))
    var giveUpAfter: Double?
    @Option(
        help: ArgumentHelp(
            "The most privacy (epsilon, at --max-delta) that this data may ever spend, over all runs with this --state. Runs without dp example are declined.",
            valueName: "epsilon"))
    var maxEpsilon: Double?
    @Option(help: ArgumentHelp("The delta that --max-epsilon is meant at (default: 0.00001).", valueName: "delta"))
    var maxDelta: Double?
    @Option(
        help: ArgumentHelp(
            "For tests: noise and sampling under dp example follow from this number, and protect nobody.", valueName: "number"))
    var unsafeDpSeed: UInt64?
    @Flag(help: "Write one JSON object for each event to standard output.")
    var json = false

    func run() throws {
        let logger = Console.makeLogger("client")
        let address = try TransportAddress(dialing: coordinator)
        if let problem = WireLimits.problem(inClientName: name) { throw Failure(.usage, "--name: \(problem)") }
        if let maxRank, maxRank < 1 { throw Failure(.usage, "--max-rank is \(maxRank): a rank is at least 1") }
        if let giveUpAfter, !(giveUpAfter.isFinite && giveUpAfter >= 0) {
            throw Failure(.usage, "--give-up-after is \(giveUpAfter): it is a number of seconds")
        }
        if let maxEpsilon, !(maxEpsilon.isFinite && maxEpsilon > 0) {
            throw Failure(.usage, "--max-epsilon is \(maxEpsilon): it is a positive number")
        }
        if let maxDelta {
            guard maxDelta > 0, maxDelta < 1 else {
                throw Failure(
                    .usage, "--max-delta is \(maxDelta): it is between 0 and 1, and well below 1 over the number of examples")
            }
            guard maxEpsilon != nil else {
                throw Failure(.usage, "--max-delta means nothing without --max-epsilon: give both, or leave it out")
            }
        }
        if unsafeDpSeed != nil {
            logger.warning("--unsafe-dp-seed: noise can be computed by anybody, and no privacy guarantee holds")
        }
        let statePath = try state ?? StatePlace.standard(coordinator: address, name: name)
        let storage = try ClientFolder(path: statePath)

        let engineBase = try EngineBase(
            modelFolder: model, unquantizedFolder: unquantizedModel, chatTemplate: chatTemplate)
        engineBase.memoryLimit = memoryLimit?.bytes
        engineBase.maximumRank = maxRank
        guard labelField == nil || engineBase.checkpoint.configuration.isEncoder else {
            throw Failure(
                .usage, "--label-field means nothing to \(model), which predicts tokens and does not classify: leave it out")
        }
        guard chatTemplate == nil || !engineBase.checkpoint.configuration.isEncoder else {
            throw Failure(
                .usage, "--chat-template means nothing to \(model), which classifies texts and reads no messages: leave it out")
        }
        let channel = ProcessChannel(address: address, giveUpAfterSeconds: giveUpAfter, logger: logger)
        let engine = try Engine(
            name: name, base: engineBase, data: data, evaluationData: evalData, textField: textField,
            labelField: labelField ?? "label",
            channel: channel, logger: logger)
        let checkpoint = engineBase.checkpoint
        let tokenizer = try checkpoint.tokenizerDigest()
        let bytes = checkpoint.weightFiles.reduce(0) { $0 + StatePlace.fileSize($1) }
        if bytes > 1_000_000_000 {
            logger.info("computing the digest of \(Readable.bytes(bytes)) in \(model); it is kept for the next start")
        }
        let base = try checkpoint.baseDigest(cache: cache ?? statePath + "/cache")

        let identity = ClientIdentity(
            name: name, baseDigest: base, tokenizerDigest: tokenizer, maximumRank: maxRank, kernelPath: try Engine.kernelPath(),
            maps: checkpoint.configuration.linearMaps)
        try Interrupts.watch {
            logger.info("stopping after what is in hand; a second signal ends at once")
            channel.interruptRequests()
        }
        let host = ClientHost(
            identity: identity, channel: channel, storage: storage, work: engine,
            privacy: ClientPrivacy(maximumEpsilon: maxEpsilon, maximumDelta: maxDelta ?? 1e-5, unsafeSeed: unsafeDpSeed),
            logger: logger, json: json)
        try host.run()
    }
}
