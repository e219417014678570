/// Decoding one token after another, with the keys and values of earlier ones kept.

import Checkpoints
import LinearAlgebra
import Primitives

/// Keys and values of one block, `[tokens, keyValueHeadCount headSize]`, rotated.
final class KeyValueCache {
    private(set) var keys = FloatBuffer()
    private(set) var values = FloatBuffer()
    private(set) var count = 0
    private let width: Int

    init(width: Int) { self.width = width }

    func append(keys newKeys: UnsafePointer<Float>, values newValues: UnsafePointer<Float>, tokens: Int) {
        if (count + tokens) * width > keys.capacity {
            let capacity = max(2 * keys.capacity, (count + tokens) * width)
            let grown = (FloatBuffer(capacity: capacity), FloatBuffer(capacity: capacity))
            grown.0.pointer.update(from: keys.pointer, count: count * width)
            grown.1.pointer.update(from: values.pointer, count: count * width)
            (keys, values) = grown
        }
        (keys.pointer + count * width).update(from: newKeys, count: tokens * width)
        (values.pointer + count * width).update(from: newValues, count: tokens * width)
        count += tokens
    }
}

/// What running a few tokens takes.
final class DecoderMemory {
    let record = BlockRecord()
    let workspace = BlockWorkspace()
    let first = FloatBuffer()
    let second = FloatBuffer()
    let state = FloatBuffer()
    var rotary: RotaryEmbedding

    init(_ configuration: ModelConfiguration) { rotary = RotaryEmbedding(configuration) }
}

/// One sequence that grows. Not to be used from two threads at once.
public final class Decoder {
    private let model: AdaptedModel
    private let caches: [KeyValueCache]
    private let memory: DecoderMemory
    private let head: LanguageHead

    /// Tokens of a prompt that run at once: their activations and not the prompt's length set the memory.
    private static let promptPart = 512

    init(_ model: AdaptedModel) {
        guard case .causal(let parts) = model.model.parts else { preconditionFailure("an encoder decodes nothing") }
        self.model = model
        let configuration = model.model.configuration
        caches = (0..<configuration.layerCount).map { _ in
            KeyValueCache(width: configuration.keyValueHeadCount * configuration.headSize)
        }
        memory = DecoderMemory(configuration)
        head = LanguageHead(parts.head, compute: model.model.compute)
    }

    /// Tokens so far.
    public var count: Int { caches[0].count }

    /// Takes the next tokens.
    /// - Returns: logits of the token after the last one, `[vocabulary]`
    /// - Throws: `Failure` if there is none, a token is outside the vocabulary, or the model's positions are used up
    public func prefill(_ tokens: [Int32]) throws(Failure) -> [Float] {
        guard !tokens.isEmpty else { throw Failure(.badData, "a prompt has no tokens; decoding needs at least one") }
        let configuration = model.model.configuration
        try checkTokens(tokens, vocabulary: configuration.vocabularySize)
        try checkLength(count + tokens.count, maximum: configuration.maximumPositions)
        var start = 0
        while tokens.count - start > Self.promptPart {
            _ = model.decode(Array(tokens[start..<start + Self.promptPart]), caches: caches, past: count, memory: memory)
            start += Self.promptPart
        }
        let state = model.decode(Array(tokens[start...]), caches: caches, past: count, memory: memory)
        return [Float](unsafeUninitializedCapacity: configuration.vocabularySize) { target, initialized in
            head.logits(state, count: 1, into: target.baseAddress!, lead: configuration.vocabularySize)
            initialized = configuration.vocabularySize
        }
    }

    /// Takes one more token; see `prefill`.
    public func step(_ token: Int32) throws(Failure) -> [Float] { try prefill([token]) }
}
