/// `tributary model generate`: text from a prompt, shown as it is written.

import ArgumentParser
import Checkpoints
import Model
import Primitives
import Programs
import Tokenizers
import Training

struct GenerateCommand: ParsableCommand {
    static let configuration = CommandConfiguration(commandName: "generate", abstract: "Let the model go on from a prompt.")

    @OptionGroup var base: ModelOptions
    @Option(name: .long, help: ArgumentHelp("Folder of a PEFT adapter.", valueName: "dir")) var adapter: String?
    @Option(name: .long, help: ArgumentHelp("What to go on from.", valueName: "text")) var prompt: String
    @Flag(name: .long, help: "Give the prompt as a user's message, by the model's chat template.") var chat = false
    @Option(name: .long, help: ArgumentHelp("A known chat template's name, in place of the model's own.", valueName: "name"))
    var chatTemplate: String?
    @Option(name: .long, help: "At most this many new tokens.") var maxTokens = 256
    @Option(name: .long, help: "0 always takes the likeliest token.") var temperature = 0.0
    @Option(name: .long, help: "Draw only among the likeliest tokens that reach this probability together.") var topP = 1.0
    @Option(name: .long, help: "Equal seeds give equal texts.") var seed: UInt64 = 0
    @OptionGroup var result: OutputOptions

    func run() throws {
        try Interrupts.watch {}
        let sampling = Sampling(temperature: temperature, topP: topP)
        try sampling.validate()
        try require(maxTokens >= 1, "max-tokens is \(maxTokens): it is at least 1")
        let kind = try CheckpointFolder(path: base.model).configuration
        try require(
            !kind.isEncoder,
            "\(base.model) is a \(kind.architecture.rawValue) model, an encoder: it classifies texts and writes none; see model eval --task classify"
        )
        let (checkpoint, language) = try base.load()
        let model = try AdaptedModel(model: language, weights: try adapterWeights(adapter, language))
        let text = try ModelText(checkpoint: checkpoint, chatTemplate: chatTemplate)
        var shown = StreamingDecoder(text.tokenizer)
        let isStreaming = !result.json
        let clock = ContinuousClock()
        let began = clock.now
        let (tokens, end) = try Generation.generate(
            model: model, prompt: try text.prompt(prompt, asMessage: chat || chatTemplate != nil), maximumTokens: maxTokens,
            endTokens: text.endTokens, sampling: sampling, generator: SeededGenerator(seed: seed, purpose: "generate")
        ) { token in
            if isStreaming { Console.text(shown.append(token)) }
            return !Interrupts.isInterrupted
        }
        let seconds = (clock.now - began) / .seconds(1)
        if isStreaming { Console.text(shown.finish() + "\n") }
        if end == .stopped { throw Failure(.interrupted, "stopped after \(tokens.count) tokens") }
        guard result.json else { return }
        let reason =
            switch end {
            case .endToken: "end_token"
            case .tokenLimit: "max_tokens"
            case .positions: "positions"
            case .stopped: "stopped"
            }
        result.write([
            ("text", .string(text.tokenizer.decode(tokens, skipSpecialTokens: true))), ("tokens", .integer(tokens.count)),
            ("end", .string(reason)), ("seconds", real(seconds)),
        ]) { "" }
    }
}
