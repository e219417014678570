/// The plan's keys as flags, for `tributary simulate` and `tributary-coordinator start` alike.
///
/// A property left out stays nil, so that a file's value or the plan's default holds. To add a key: a property here,
/// a row in `keys`, a line in `deploy/federation.yaml` and one in `docs/configuration.md`; tests compare the four.

import ArgumentParser
import Plan
import Primitives
import UpdateCodec

public struct PlanOptions: ParsableArguments, Sendable {
    // The federation.
    @Option(help: "Rounds to train.")
    public var rounds: Int?
    @Option(help: "Clients selected for each round; 0: all.")
    public var clientsPerRound: Int?
    @Option(help: "How contributions become the next adapter.")
    public var strategy: StrategyName?
    @Option(help: "Contributions that close a round at its deadline; 0: all that were selected.")
    public var quorum: Int?
    @Option(help: ArgumentHelp("Seconds from the start of a round to its deadline.", valueName: "seconds"))
    public var deadline: Double?
    @Option(help: "By the number of a client's examples, or all the same.")
    public var weighting: Weighting?
    @Option(help: "Everything random follows from it.")
    public var seed: UInt64?

    // The task.
    @Option(help: "What the model learns: to go on with a text, or to tell its label.")
    public var task: TaskName?
    @Option(
        help: ArgumentHelp(
            "classify: all labels, or a file with one a line or a JSON list, in the order of the classifier's outputs.",
            valueName: "label,...|file"), transform: PlanOptions.words)
    public var labels: [String]?

    // The adapter.
    @Option(help: ArgumentHelp("One rank; several for flora, such as 4,8,16.", valueName: "rank,..."), transform: integers)
    public var ranks: [Int]?
    @Option(help: "The scale is alpha / rank; left out: twice the rank. Not for fed-sb.")
    public var alpha: Double?
    @Flag(inversion: .prefixedNo, help: "The scale is alpha / sqrt(rank).")
    public var rankStabilized: Bool?
    @Option(
        help: ArgumentHelp("all-linear, or names such as q_proj,v_proj.", valueName: "name,..."), transform: PlanOptions.words)
    public var targetModules: [String]?
    @Option(help: "flora: the largest rank of the global correction.")
    public var rankCap: Int?
    @Option(help: "Where the first factors come from: zero or loftq, with fed-sb gradient or xs.")
    public var start: StartName?
    @Option(help: ArgumentHelp("A PEFT adapter to start from instead of a fresh one.", valueName: "folder"))
    public var initAdapter: String?

    // Training at each client.
    @Option(help: "Optimizer steps a round.")
    public var localSteps: Int?
    @Option(help: "Examples in a batch.")
    public var batchSize: Int?
    @Option(help: "Batches in a step.")
    public var gradientAccumulation: Int?
    @Option(help: "Longer examples are cut, in tokens.")
    public var sequenceLength: Int?
    @Option(help: "best-fit: batches of bins of up to a sequence length of tokens; long texts are divided.")
    public var packing: PackingName?
    @Option(help: "The peak learning rate.")
    public var learningRate: Double?
    @Option(help: "Of the learning rate, over all rounds.")
    public var schedule: ScheduleName?
    @Option(help: "Steps in which the learning rate rises from 0.")
    public var warmupSteps: Int?
    @Option(help: "Its state starts anew in each round.")
    public var optimizer: OptimizerName?
    @Option(help: "AdamW's decoupled weight decay.")
    public var weightDecay: Double?
    @Option(help: "The largest norm of a step's gradient; 0: no clipping.")
    public var gradientClip: Double?
    @Option(help: "How clients hold the frozen base.")
    public var quantize: QuantizationName?
    @Option(help: "What products with the frozen base are computed in.")
    public var compute: ComputeName?
    @Option(help: "What activations that wait for the backward pass are kept in; auto is what products are computed in.")
    public var savedActivations: ComputeName?

    // How updates travel.
    @Option(
        help: ArgumentHelp("How contributions are encoded: f32, bf16, int8, topk:K or compeft:K.", valueName: "codec"),
        transform: codec)
    public var compress: UpdateCodec?
    @Option(
        help: ArgumentHelp("How the adapter's change is encoded for clients that hold the one before.", valueName: "codec"),
        transform: codec)
    public var compressDownlink: UpdateCodec?
    @Flag(inversion: .prefixedNo, help: "Clients add what their last encoding left out to the next update.")
    public var errorFeedback: Bool?
    @Option(help: "The factor on what was left out for each round without the client.")
    public var residualDecay: Double?

    // Differential privacy.
    @Option(help: "Whose presence the results must not tell.")
    public var dp: PrivacyName?
    @Option(help: "The privacy budget of the whole run.")
    public var epsilon: Double?
    @Option(help: "The probability that the budget leaves out.")
    public var delta: Double?
    @Option(help: "The largest norm of an example's gradient (dp example) or of a client's update (dp client).")
    public var clip: Double?
    @Option(help: "Noise over clip; left out: what epsilon needs.")
    public var noiseMultiplier: Double?
    @Option(help: "dp client: the probability with which each client takes part in a round.")
    public var clientSamplingRate: Double?
    @Option(help: "dp client: adapt the clip so that this share of updates is below it.")
    public var clipQuantile: Double?
    @Option(help: "dp client: how fast the clip adapts.")
    public var clipLearningRate: Double?
    @Option(help: "dp client: noise on the count of updates below the clip.")
    public var clipCountNoise: Double?
    @Flag(inversion: .prefixedNo, help: "dp example: clients may tell how many examples they have.")
    public var publicCounts: Bool?
    @Flag(inversion: .prefixedNo, help: "Under dp: evaluation data is nobody's secret.")
    public var publicEvaluation: Bool?

    // Evaluation.
    @Option(help: ArgumentHelp("Decode up to so many tokens and compare; 0: only the loss.", valueName: "tokens"))
    public var exactMatch: Int?
    @Option(help: ArgumentHelp("Compare only what follows this text, such as ####.", valueName: "text"))
    public var exactMatchMarker: String?

    public init() {}

    /// Every key of a configuration file that is the plan's, in the order of the help.
    public static let keys: [ConfigurationKey<PlanOptions>] = [
        .init("rounds", \.rounds, plan: \.rounds),
        .init("clients_per_round", \.clientsPerRound, plan: \.clientsPerRound),
        .init("strategy", \.strategy, plan: \.strategy),
        .init("quorum", \.quorum, plan: \.quorum),
        .init("deadline", \.deadline, plan: \.deadlineSeconds),
        .init("weighting", \.weighting, plan: \.weighting),
        .init("seed", \.seed, plan: \.seed),
        .init("task", \.task, plan: \.task),
        .init("labels", \.labels, plan: \.labels),
        .init("ranks", \.ranks, plan: \.ranks),
        .init("alpha", \.alpha, plan: \.alpha),
        .init("rank_stabilized", \.rankStabilized, plan: \.rankStabilized),
        .init("target_modules", \.targetModules, plan: \.targetModules),
        .init("rank_cap", \.rankCap, plan: \.rankCap),
        .init("start", \.start, plan: \.start),
        .init("init_adapter", \.initAdapter),
        .init("local_steps", \.localSteps, plan: \.localSteps),
        .init("batch_size", \.batchSize, plan: \.batchSize),
        .init("gradient_accumulation", \.gradientAccumulation, plan: \.gradientAccumulation),
        .init("sequence_length", \.sequenceLength, plan: \.sequenceLength),
        .init("packing", \.packing, plan: \.packing),
        .init("learning_rate", \.learningRate, plan: \.learningRate),
        .init("schedule", \.schedule, plan: \.schedule),
        .init("warmup_steps", \.warmupSteps, plan: \.warmupSteps),
        .init("optimizer", \.optimizer, plan: \.optimizer),
        .init("weight_decay", \.weightDecay, plan: \.weightDecay),
        .init("gradient_clip", \.gradientClip, plan: \.gradientClip),
        .init("quantize", \.quantize, plan: \.quantize),
        .init("compute", \.compute, plan: \.compute),
        .init("saved_activations", \.savedActivations, plan: \.savedActivations),
        .init("compress", \.compress, plan: \.compress),
        .init("compress_downlink", \.compressDownlink, plan: \.compressDownlink),
        .init("error_feedback", \.errorFeedback, plan: \.errorFeedback),
        .init("residual_decay", \.residualDecay, plan: \.residualDecay),
        .init("dp", \.dp, plan: \.privacy),
        .init("epsilon", \.epsilon, plan: \.epsilon),
        .init("delta", \.delta, plan: \.delta),
        .init("clip", \.clip, plan: \.clip),
        .init("noise_multiplier", \.noiseMultiplier, plan: \.noiseMultiplier),
        .init("client_sampling_rate", \.clientSamplingRate, plan: \.clientSamplingRate),
        .init("clip_quantile", \.clipQuantile, plan: \.clipQuantile),
        .init("clip_learning_rate", \.clipLearningRate, plan: \.clipLearningRate),
        .init("clip_count_noise", \.clipCountNoise, plan: \.clipCountNoise),
        .init("public_counts", \.publicCounts, plan: \.publicCounts),
        .init("public_evaluation", \.publicEvaluation, plan: \.publicEvaluation),
        .init("exact_match", \.exactMatch, plan: \.exactMatchTokens),
        .init("exact_match_marker", \.exactMatchMarker, plan: \.exactMatchMarker),
    ]

    /// Sets in `plan` what was given, and leaves the rest.
    ///
    /// Ranks are put in ascending order, each once: the plan's own form.
    public func apply(to plan: inout FederationPlan) {
        for key in Self.keys { key.apply(self, &plan) }
        plan.ranks = Set(plan.ranks).sorted()
        settle(&plan)
    }

    /// Defaults that follow from other keys: under differential privacy clients count alike, and examples are clipped instead
    /// of steps, unless something else was asked for.
    public func settle(_ plan: inout FederationPlan) {
        if plan.privacy != .none, weighting == nil { plan.weighting = .uniform }
        if plan.privacy == .example, gradientClip == nil { plan.gradientClip = 0 }
    }

    /// Words between commas, without the spaces around them.
    ///
    /// - Throws: a parser's error if one is empty
    public static func words(_ text: String) throws -> [String] {
        guard let values = [String](configuration: split(text)) else { throw ValidationError("it is \([String].expectation)") }
        return values
    }

    /// Reads the labels where one text was given for them, which is the name of a file.
    ///
    /// - Throws: `Failure` if the file cannot be read, or a line of it is empty
    public static func readLabels(_ plan: inout FederationPlan) throws(Failure) { plan.labels = try readLabels(plan.labels) }

    /// The labels that were given, or those in the file whose name alone was given.
    public static func readLabels(_ given: [String]) throws(Failure) -> [String] {
        guard given.count == 1 else { return given }
        let labels = try labels(file: given[0])
        try check(labels, file: given[0])
        return labels
    }

    /// - Throws: `Failure(.badData)` that names the file, where its labels cannot be those of a task
    private static func check(_ labels: [String], file path: String) throws(Failure) {
        guard labels.count >= 2 else {
            throw Failure(
                .badData, "\(path) holds \(labels.count == 1 ? "1 label" : "no labels"): classification needs at least 2")
        }
        var seen: [[UInt8]: Int] = [:]
        for (index, label) in labels.enumerated() {
            guard !label.isEmpty else { throw Failure(.badData, "\(path): label \(index + 1) is empty") }
            if let first = seen.updateValue(index, forKey: Array(label.utf8)) {
                throw Failure(
                    .badData,
                    "\(path): label \(index + 1) is \"\(label)\" again, which is label \(first + 1) already: a label has one place"
                )
            }
            guard !label.unicodeScalars.contains(where: { $0.properties.generalCategory == .control }) else {
                throw Failure(.badData, "\(path): label \(index + 1) holds a control character: use plain text")
            }
        }
    }

    /// One label a line, or a JSON list of texts in a file of that name; a byte order mark is no part of the first.
    private static func labels(file path: String) throws(Failure) -> [String] {
        var bytes = try FileReading.bytes(path)
        if bytes.starts(with: [0xEF, 0xBB, 0xBF]) { bytes.removeFirst(3) }
        if path.hasSuffix(".json") {
            let texts = (try? JSONValue(parsing: bytes))?.elements?.map(\.text)
            guard let texts, !texts.contains(nil) else {
                throw Failure(.badData, "\(path) is not a JSON list of texts: write it as [\"no\", \"yes\"]")
            }
            return texts.compactMap { $0 }
        }
        guard let text = String(validating: bytes, as: UTF8.self) else {
            throw Failure(.badData, "\(path) is not UTF-8: save the labels as UTF-8, one a line")
        }
        var lines = text.split(separator: "\n", omittingEmptySubsequences: false).map(String.init)
        if text.contains("\r\n") { lines = text.split(separator: "\r\n", omittingEmptySubsequences: false).map(String.init) }
        if lines.last == "" { lines.removeLast() }
        if let empty = lines.firstIndex(of: "") {
            throw Failure(.badData, "\(path):\(empty + 1): this line is empty; a file of labels has one a line")
        }
        return lines
    }

    /// Refuses what was given and belongs to another strategy, so that nobody takes it for effective.
    ///
    /// - Parameter exceptDefaults: true for a file, which may list every key with its default
    /// - Throws: `Failure(.usage)` that names the option
    public func refuseUnused(by strategy: StrategyName, exceptDefaults: Bool = false) throws(Failure) {
        func refuse<Value: Equatable>(
            _ option: String, _ value: Value?, _ standard: Value, of owner: StrategyName
        ) throws(Failure) {
            guard let value, strategy != owner, !(exceptDefaults && value == standard) else { return }
            throw Failure(
                .usage,
                "\(option) belongs to \(owner.rawValue) and means nothing to \(strategy.rawValue): leave it out, or choose the strategy \(owner.rawValue)"
            )
        }
        let standard = FederationPlan()
        try refuse("rank-cap", rankCap, standard.rankCap, of: .flora)
    }
}

private func integers(_ text: String) throws -> [Int] {
    guard let values = [Int](configuration: split(text)) else { throw ValidationError("it is \([Int].expectation)") }
    return values
}

private func codec(_ text: String) throws -> UpdateCodec {
    do { return try UpdateCodec(parsing: text) } catch { throw ValidationError(error.message) }
}

private func split(_ text: String) -> [String] {
    text.split(separator: ",", omittingEmptySubsequences: false).map { part in
        String(part.drop { $0 == " " }.reversed().drop { $0 == " " }.reversed())
    }
}

extension StrategyName: ExpressibleByArgument {}
extension Weighting: ExpressibleByArgument {}
extension StartName: ExpressibleByArgument {}
extension ScheduleName: ExpressibleByArgument {}
extension OptimizerName: ExpressibleByArgument {}
extension PackingName: ExpressibleByArgument {}
extension QuantizationName: ExpressibleByArgument {}
extension PrivacyName: ExpressibleByArgument {}
extension ComputeName: ExpressibleByArgument {}
extension TaskName: ExpressibleByArgument {}
