/// What `tokenizer_config.json` says beside the tokenizer: the end token and the chat template.

import FoundationEssentials
import Primitives

public struct TokenizerConfiguration: Equatable, Sendable {
    /// Contents of the tokens, nil where the file names none.
    public let beginToken: String?
    public let endToken: String?
    /// The Jinja text of the model's chat template, nil where it has none, and the file that holds it.
    public let chatTemplate: String?
    public let chatTemplatePath: String?

    /// - Parameter folder: of a model; without a `tokenizer_config.json` everything is nil.
    public init(folder: String) throws(Failure) {
        let path = folder + "/tokenizer_config.json"
        let bytes = FileManager.default.fileExists(atPath: path) ? try FileReading.bytes(path) : Array("{}".utf8)
        // Newer models keep the template in a file of its own.
        let separate = folder + "/chat_template.jinja"
        let hasSeparate = FileManager.default.fileExists(atPath: separate)
        try self.init(
            bytes: bytes, path: path,
            separateTemplate: hasSeparate ? (String(decoding: try FileReading.bytes(separate), as: UTF8.self), separate) : nil)
    }

    /// - Parameters:
    ///   - bytes: of a `tokenizer_config.json`
    ///   - path: what they are called in errors
    ///   - separateTemplate: a chat template that stands before the file's own, and where it lies
    public init(bytes: [UInt8], path: String, separateTemplate: (text: String, path: String)? = nil) throws(Failure) {
        let root = try FilePart(reading: bytes, path: path)
        guard root.value.members != nil else { throw root.failure("it must be an object, not \(root.value.kind)") }
        beginToken = try Self.token("bos_token", root)
        endToken = try Self.token("eos_token", root)
        if let separateTemplate {
            (chatTemplate, chatTemplatePath) = (separateTemplate.text, separateTemplate.path)
        } else {
            chatTemplate = try Self.template(root)
            chatTemplatePath = chatTemplate == nil ? nil : path
        }
    }

    /// "</s>", or an object with the content.
    private static func token(_ key: String, _ root: FilePart) throws(Failure) -> String? {
        guard let part = root.part(key) else { return nil }
        return part.value.members == nil ? try part.text() : try part.text("content")
    }

    /// One text, or a list of {name, template} of which "default" counts.
    private static func template(_ root: FilePart) throws(Failure) -> String? {
        guard let part = root.part("chat_template") else { return nil }
        guard part.value.elements != nil else { return try part.text() }
        for choice in try root.parts("chat_template") where try choice.text("name") == "default" {
            return try choice.text("template")
        }
        return nil
    }

    /// The id of the end token: the tokenizer's own, else the first that the model's configuration names.
    public func endToken(tokenizer: Tokenizer, configured: [Int]) throws(Failure) -> Int32 {
        if let endToken {
            guard let id = tokenizer.tokenID(endToken) else {
                throw Failure(
                    .badData,
                    "\(tokenizer.path) lacks the token \(endToken), which tokenizer_config.json beside it names as eos_token")
            }
            return id
        }
        guard let first = configured.first, let id = Int32(exactly: first) else {
            throw Failure(
                .badData,
                "\(tokenizer.path): no end token is known; name one as eos_token in tokenizer_config.json or eos_token_id in config.json"
            )
        }
        return id
    }

    /// The template called `name`, or with nil the model's own if it is one that we know; nil if the model has none.
    public func template(named name: String?) throws(Failure) -> ChatTemplate? {
        if let name { return try ChatTemplate.named(name) }
        guard let chatTemplate, let chatTemplatePath else { return nil }
        if let known = ChatTemplate(recognising: chatTemplate) { return known }
        throw Failure(
            .badData,
            "\(chatTemplatePath): this chat template is none that Tributary knows; if one of "
                + "\(ChatTemplate.all.map(\.name).joined(separator: ", ")) fits, name it with --chat-template")
    }
}

extension ChatTemplate {
    /// The template that a Jinja text stands for, by what only it contains; nil if it is unknown.
    public init?(recognising jinja: String) {
        // White space, line breaks in literals and the kind of quotes differ from model to model.
        var bytes = jinja.utf8.filter { ![0x20, 0x09, 0x0A, 0x0D].contains($0) }.map {
            $0 == UInt8(ascii: "\"") ? UInt8(ascii: "'") : $0
        }
        for (variant, plain) in [
            ("\\n", ""), ("message.role", "message['role']"), ("message.content", "message['content']"), ("+''", ""),
        ] {
            bytes = replaced(bytes[...], Array(variant.utf8), with: Array(plain.utf8))
        }
        func has(_ part: String) -> Bool { contains(bytes, Array(part.utf8)) }
        func known(_ name: String) -> ChatTemplate? { Self.all.first { $0.name == name } }

        var found: ChatTemplate?
        if has("<|im_start|>") {
            let isPlain =
                has("'<|im_start|>'+message['role']+message['content']+'<|im_end|>'")
                || has("<|im_start|>{{message['role']}}{{message['content']}}<|im_end|>")
            if has("'<|im_start|>'+message['role']+content+'<|im_end|>'"), has("ifloop.index0>ns.last_query_index%"),
                has("ifloop.lastor(notloop.lastandreasoning_content)%}")
            {
                found = known("qwen3")
            } else if !isPlain || has("<think>") {
                found = nil
            } else if has("<|im_start|>systemYouareQwen,createdbyAlibabaCloud.Youareahelpfulassistant.<|im_end|>") {
                found = known("qwen2.5")
            } else if has("<|im_start|>systemYouareahelpfulAIassistantnamedSmolLM,trainedbyHuggingFace<|im_end|>") {
                found = known("smollm2")
            } else if has("<|im_start|>systemYouareahelpfulassistant.<|im_end|>") {
                found = known("qwen2")
            } else if has("<|im_start|>systemYouareahelpfulassistant<|im_end|>") {
                // Qwen 1.5: the same sentence without its full stop.
                found = ChatTemplate(name: "qwen2", style: .chatML(standardSystem: "You are a helpful assistant"))
            } else if !has("<|im_start|>system"), !has("tool"), !has("bos_token") {
                found = known("chatml")
            }
        } else if has("'<|start_header_id|>'+message['role']+'<|end_header_id|>'+message['content']|trim+'<|eot_id|>'") {
            found = known(has("CuttingKnowledgeDate:December2023") ? "llama3.1" : "llama3")
        }
        guard let found else { return nil }
        self = found
    }
}

private func contains(_ text: [UInt8], _ part: [UInt8]) -> Bool {
    text.indices.contains { text[$0] == part[0] && text[$0...].starts(with: part) }
}
