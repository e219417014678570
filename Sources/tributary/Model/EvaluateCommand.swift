/// `tributary model eval`: loss, and perplexity and exact match or accuracy and macro-F1, of a model on a data file.

import Adapters
import ArgumentParser
import Checkpoints
import ClientEngine
import Datasets
import Model
import Plan
import Primitives
import Programs
import Training

struct EvaluateCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "eval",
        abstract: "Measure loss and perplexity, exact match, or a classifier's accuracy, on a data file.")

    @OptionGroup var base: ModelOptions
    @Option(name: .long, help: ArgumentHelp("Folder of a PEFT adapter.", valueName: "dir")) var adapter: String?
    @Option(name: .long, help: ArgumentHelp("JSONL or CSV with text, prompt and completion, or messages.", valueName: "file"))
    var data: String
    @Option(name: .long, help: ArgumentHelp("Let the model write each completion in at most this many tokens.", valueName: "n"))
    var exactMatch: Int?
    @Option(name: .long, help: ArgumentHelp("Compare only what follows this text, such as \"####\".", valueName: "text"))
    var exactMatchMarker: String?
    @Option(name: .long, help: ArgumentHelp("Only the first so many examples.", valueName: "n")) var limit: Int?
    @Option(name: .long, help: ArgumentHelp("A known chat template's name, in place of the model's own.", valueName: "name"))
    var chatTemplate: String?
    @OptionGroup var taskOptions: TaskOptions
    @OptionGroup var result: OutputOptions

    func run() throws {
        try Interrupts.watch {}
        try require((exactMatch ?? 1) >= 1, "exact-match is \(exactMatch ?? 0): it is a number of new tokens, at least 1")
        try require(
            exactMatchMarker == nil || exactMatch != nil,
            "--exact-match-marker means nothing without --exact-match: give both, or leave it out")
        try require((limit ?? 1) >= 1, "limit is \(limit ?? 0): it is at least 1")
        let checkpoint = try CheckpointFolder(path: base.model)
        let tuned = try adapter.map { folder throws(Failure) in try PEFTAdapter(folder: folder) }
        let plan = try taskOptions.plan(for: checkpoint.configuration) { () throws(Failure) in
            try labels(tuned, checkpoint)
        }
        if plan.task == .classify {
            if let tuned, !tuned.head.isEmpty {
                try tuned.checkLabels(plan.labels)
            } else {
                try checkpoint.checkOwnLabels(plan.labels)
            }
        }
        try require(
            plan.task == .causal || exactMatch == nil,
            "--exact-match is not possible with --task classify, which writes nothing: leave it out")
        try require(
            plan.task == .causal || chatTemplate == nil,
            "--chat-template means nothing to --task classify, which reads texts and no messages: leave it out")
        // What is wrong with the data is found before the model is loaded.
        let text = try ModelText(checkpoint: checkpoint, chatTemplate: chatTemplate)
        let positions = checkpoint.configuration.maximumPositions
        let encoded = try text.examples(
            try DataFile.read(data, textField: taskOptions.textField), task: taskOptions.learningTask(plan),
            sequenceLength: positions)
        let (_, language) = try base.load(task: plan.modelTask)
        let model = try AdaptedModel(
            model: language, weights: try tuned?.weights(maps: language.linearMaps) ?? EngineBase.noAdapter)
        if let notes = dataNotes(encoded, sequenceLength: positions) { Console.error(notes) }
        let examples = Array(encoded.examples.prefix(limit ?? .max))
        var line = ProgressLine()
        var writing: ProgressLine?
        let outcome = try Evaluation.evaluate(
            model: model, examples: examples,
            exactMatch: exactMatch.map { ExactMatch(maximumTokens: $0, marker: exactMatchMarker ?? "") },
            tokenizer: text.tokenizer, endTokens: text.endTokens
        ) { done, count in
            if done <= examples.count {
                line.show(done: done, of: count, unit: "examples", "evaluated \(done) of \(examples.count) examples")
            } else {
                // Writing takes far longer than reading: it has a rate of its own.
                if writing == nil { writing = ProgressLine() }
                let written = done - examples.count
                writing?.show(
                    done: written, of: examples.count, unit: "examples",
                    "writing completion \(written) of \(examples.count)")
            }
            return !Interrupts.isInterrupted
        }
        line.finish()
        if let counts = outcome.labelCounts { return write(outcome, counts, encoded, seconds: line.seconds) }
        result.write([
            ("loss", real(outcome.loss)), ("perplexity", real(outcome.perplexity)),
            ("target_tokens", .integer(outcome.targetTokens)),
            ("examples", .integer(outcome.examples)), ("exact_match", outcome.exactMatch.map(real) ?? .null),
            ("cut", .integer(encoded.cutCount)), ("dropped", .integer(encoded.droppedCount)), ("seconds", real(line.seconds)),
        ]) {
            """
            loss           \(Readable.decimal(outcome.loss, 5)) nats per target token
            perplexity     \(Readable.decimal(outcome.perplexity, 3))
            target tokens  \(outcome.targetTokens)
            examples       \(outcome.examples)
            exact match    \(outcome.exactMatches.map { "\($0) of \(outcome.examples), \(Readable.decimal(100 * (outcome.exactMatch ?? 0), 1)) %" } ?? "not measured (--exact-match N)")

            """
        }
    }

    /// The labels of the adapter's head, or, without one, of the checkpoint's own.
    private func labels(_ adapter: PEFTAdapter?, _ checkpoint: CheckpointFolder) throws(Failure) -> [String] {
        guard let adapter, !adapter.head.isEmpty else { return try checkpoint.ownLabels() }
        // The base's id2label need not be what the adapter's head was trained for.
        try adapter.checkLabels([])
        return adapter.labels
    }

    private func write(_ outcome: EvaluationOutcome, _ counts: LabelCounts, _ encoded: EncodedData, seconds: Double) {
        let (accuracy, macroF1) = (counts.accuracy ?? 0, counts.macroF1 ?? 0)
        result.write([
            ("loss", real(outcome.loss)), ("accuracy", real(accuracy)), ("macro_f1", real(macroF1)),
            ("labels", .integer(counts.labelCount)), ("examples", .integer(outcome.examples)),
            ("cut", .integer(encoded.cutCount)), ("seconds", real(seconds)),
        ]) {
            """
            loss      \(Readable.decimal(outcome.loss, 5)) nats an example
            accuracy  \(Readable.decimal(100 * accuracy, 2)) %
            macro F1  \(Readable.decimal(100 * macroF1, 2)) %
            examples  \(outcome.examples) of \(counts.labelCount) labels

            """
        }
    }
}
