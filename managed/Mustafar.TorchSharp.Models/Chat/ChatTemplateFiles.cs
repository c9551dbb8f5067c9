using System.Text;
using System.Text.Json;
using Mustafar.Models.Checkpoint;

namespace Mustafar.Models.Chat;

/// <summary>A chat template's text.</summary>
/// <param name="Origin">Its origin, for messages.</param>
/// <param name="Text">A program in Jinja.</param>
/// <param name="RequiredTokens">Tokens that it needs.</param>
internal sealed record ChatTemplateText(string Origin, string Text, IReadOnlyList<string> RequiredTokens);

/// <summary>Finds the chat templates of a checkpoint, as transformers does, and the built-in ones.</summary>
internal static class ChatTemplateFiles
{
    /// <summary>How to choose another template, for messages.</summary>
    public const string HowToChoose =
        "Choose another template with --chat-template (ChatTemplate in the client's options): llama3, mistral, chatml, or the path of a Jinja file.";

    private const string Default = "default";
    private const long LargestFile = 1 << 24;

    // With the tokens that they use: a tokenizer that lacks one would spell it out.
    private static readonly Dictionary<string, string[]> s_builtIn = new()
    {
        ["llama3"] = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        ["mistral"] = ["<s>", "</s>"],
        ["chatml"] = ["<|im_start|>", "<|im_end|>"],
    };

    /// <summary>Names of the built-in templates.</summary>
    public static IReadOnlyCollection<string> BuiltInNames => s_builtIn.Keys;

    /// <summary>Finds a template.</summary>
    /// <param name="directory">The checkpoint.</param>
    /// <param name="name">A template of the checkpoint or a built-in one by name, or the path of a file; the checkpoint's default if null.</param>
    /// <exception cref="UnsupportedModelException">The checkpoint has none, or several and no default.</exception>
    /// <exception cref="CheckpointException">A file is damaged.</exception>
    /// <exception cref="ArgumentException">There is none of this name.</exception>
    public static ChatTemplateText Find(string directory, string? name)
    {
        Dictionary<string, ChatTemplateText> own = OfCheckpoint(directory);
        string names = string.Join(", ", own.Keys.Order(StringComparer.Ordinal));
        if (name is null)
        {
            return own.TryGetValue(Default, out ChatTemplateText? template) ? template
                : own.Count == 0 ? throw new UnsupportedModelException($"there is no chat template. {HowToChoose}", directory)
                : throw new UnsupportedModelException(
                    $"there are the chat templates {names}, but none is the default. Choose one of them by name. {HowToChoose}", directory);
        }

        return own.TryGetValue(name, out ChatTemplateText? named) ? named
            : s_builtIn.TryGetValue(name, out string[]? tokens) ? new ChatTemplateText($"built-in chat template '{name}'", ReadBuiltIn(name), tokens)
            : Path.Exists(name) ? Read(name)
            : throw new ArgumentException(
                $"Expected {string.Join(", ", BuiltInNames)}, {(own.Count > 0 ? $"a template of the checkpoint ({names}), " : "")}"
                + $"or the path of a Jinja file, but got '{name}', and no such file exists.",
                nameof(name));
    }

    // Files override tokenizer_config.json.
    private static Dictionary<string, ChatTemplateText> OfCheckpoint(string directory)
    {
        Dictionary<string, ChatTemplateText> found = [];
        string file = Path.Combine(directory, "chat_template.jinja");
        if (Path.Exists(file))
        {
            found[Default] = Read(file);
        }

        string more = Path.Combine(directory, "additional_chat_templates");
        if (Directory.Exists(more))
        {
            foreach (string path in Directory.EnumerateFiles(more, "*.jinja"))
            {
                found[Path.GetFileNameWithoutExtension(path)] = Read(path);
            }
        }

        string config = Path.Combine(directory, "tokenizer_config.json");
        if (found.Count > 0 || !Path.Exists(config))
        {
            return found;
        }

        using JsonDocument document = JsonFile.Open(config);
        switch (document.RootElement.Find("chat_template"))
        {
            case null:
                break;
            case { ValueKind: JsonValueKind.String } text:
                found[Default] = new ChatTemplateText(config, text.GetString()!, []);
                break;
            case { ValueKind: JsonValueKind.Array } list:
                foreach (JsonElement item in list.EnumerateArray())
                {
                    string name = item.Require("name", JsonValueKind.String, config).GetString()!;
                    string text = item.Require("template", JsonValueKind.String, config).GetString()!;
                    found[name] = new ChatTemplateText($"{config}: chat template '{name}'", text, []);
                }

                break;
            case { } other:
                throw new CheckpointException($"expected a text or a list as 'chat_template', but got {other.Quote()}.", config);
        }

        return found;
    }

    private static ChatTemplateText Read(string path)
    {
        byte[] content = CheckpointFile.ReadAllBytes(path, LargestFile);
        try
        {
            string text = new UTF8Encoding(false, throwOnInvalidBytes: true).GetString(content);
            return new ChatTemplateText(path, text.TrimStart('\uFEFF'), []);
        }
        catch (DecoderFallbackException exception)
        {
            throw new CheckpointException("expected a chat template in UTF-8, but some bytes are not.", path, innerException: exception);
        }
    }

    private static string ReadBuiltIn(string name)
    {
        using Stream stream = typeof(ChatTemplateFiles).Assembly.GetManifestResourceStream(name + ".jinja")!;
        using StreamReader reader = new(stream);
        return reader.ReadToEnd();
    }
}
