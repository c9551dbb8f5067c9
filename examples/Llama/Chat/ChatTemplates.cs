using System.Text.Json;
using System.Text.RegularExpressions;
using Mustafar.Examples.Llama.Checkpoint;
using Mustafar.Examples.Llama.Tokenizer;

namespace Mustafar.Examples.Llama.Chat;

/// <summary>Finds the template of a checkpoint.</summary>
/// <remarks>
/// A checkpoint has its template as a program in Jinja. It isn't run: the families whose templates are known are told by their markup,
/// and one that isn't known is refused.
/// </remarks>
public static partial class ChatTemplates
{
    // The date that the templates have in place of today's where the program that runs them tells none.
    private static readonly DateOnly s_fixedDate = new(2024, 7, 26);

    private static readonly Dictionary<string, Func<ChatTemplate>> s_byName = new()
    {
        [Llama3Template.FamilyName] = () => new Llama3Template(),
        [MistralTemplate.FamilyName] = () => new MistralTemplate(),
        [ChatMlTemplate.FamilyName] = () => new ChatMlTemplate(),
    };

    /// <summary>Names for <see cref="Find"/>.</summary>
    public static IReadOnlyCollection<string> Names => s_byName.Keys;

    /// <summary>The template of a checkpoint.</summary>
    /// <param name="directory">The checkpoint.</param>
    /// <param name="tokenizer">Its tokenizer.</param>
    /// <param name="name">One of <see cref="Names"/>, to take instead of the checkpoint's; null for the checkpoint's.</param>
    /// <exception cref="UnsupportedModelException">The checkpoint has no template, or one that isn't known; or its tokenizer lacks a
    /// token of it.</exception>
    /// <exception cref="ArgumentException">There is no such name.</exception>
    public static ChatTemplate Find(string directory, TextTokenizer tokenizer, string? name = null)
    {
        ArgumentNullException.ThrowIfNull(directory);
        ArgumentNullException.ThrowIfNull(tokenizer);
        ChatTemplate template;
        if (name is not null)
        {
            template = s_byName.TryGetValue(name, out Func<ChatTemplate>? make)
                ? make()
                : throw new ArgumentException($"Expected one of {string.Join(", ", Names)}, but got '{name}'.", nameof(name));
        }
        else
        {
            string names = string.Join(", ", Names);
            string program = ReadProgram(directory)
                ?? throw new UnsupportedModelException($"there is no chat template; one of {names} can be chosen.", directory);
            template = Recognise(program, DateOnly.FromDateTime(DateTime.Now))
                ?? throw new UnsupportedModelException($"the chat template is not known; expected one of {names}.", directory);
        }

        template.RequireTokens(tokenizer, directory);
        return template;
    }

    /// <summary>The template that a program in Jinja writes, or null if it isn't known.</summary>
    /// <param name="program">The program.</param>
    /// <param name="today">The date of today.</param>
    internal static ChatTemplate? Recognise(string program, DateOnly today)
    {
        if (Has("<|start_header_id|>") && Has("<|eot_id|>"))
        {
            bool hasDates = Has("Cutting Knowledge Date: December 2023");
            return new Llama3Template(!hasDates ? null : Has("strftime_now") ? today : s_fixedDate);
        }

        if (Has("<|im_start|>") && Has("<|im_end|>"))
        {
            Match system = DefaultSystem().Match(program);
            return new ChatMlTemplate(system.Success ? system.Groups["text"].Value : null, beginsText: Has("bos_token"));
        }

        // Llama 2, and later models of Mistral, wrap what the system says in marks of their own.
        string? beforeUser = FirstText(" [INST] ", "[INST] ", "[INST]");
        string? afterUser = FirstText(" [/INST]", "[/INST]");
        return beforeUser is null || afterUser is null || Has("<<SYS>>") || Has("[SYSTEM_PROMPT]")
            ? null
            : new MistralTemplate(
                beforeUser,
                afterUser,
                beforeReply: Has("' ' + message['content']") || Has("\" \" + message[\"content\"]") ? " " : "",
                afterReply: Has("eos_token + ' '") ? " " : "");

        bool Has(string text) => program.Contains(text, StringComparison.Ordinal);

        string? FirstText(params ReadOnlySpan<string> texts)
        {
            foreach (string text in texts)
            {
                if (Has($"'{text}'") || Has($"\"{text}\""))
                {
                    return text;
                }
            }

            return null;
        }
    }

    /// <summary>Who speaks, as templates spell it.</summary>
    internal static string NameOf(ChatSpeaker speaker) => speaker switch
    {
        ChatSpeaker.System => "system",
        ChatSpeaker.User => "user",
        _ => "assistant",
    };

    // What the program writes where a chat begins without the system, as a constant: line ends as they are, or as escapes.
    [GeneratedRegex(@"<\|im_start\|>system(\\n|\n)(?<text>[^<>{}\\'""]+)<\|im_end\|>")]
    private static partial Regex DefaultSystem();

    // A file of its own, or a key of tokenizer_config.json: a text, or a list of texts with names.
    private static string? ReadProgram(string directory)
    {
        string file = Path.Combine(directory, "chat_template.jinja");
        if (File.Exists(file))
        {
            return File.ReadAllText(file);
        }

        string path = Path.Combine(directory, "tokenizer_config.json");
        if (!File.Exists(path))
        {
            return null;
        }

        using JsonDocument document = JsonFile.Open(path);
        return document.RootElement.Find("chat_template") switch
        {
            null => null,
            { ValueKind: JsonValueKind.String } text => text.GetString(),
            { ValueKind: JsonValueKind.Array } list => list.EnumerateArray()
                .Where(item => item.FindString("name", path) == "default")
                .Select(item => item.FindString("template", path))
                .FirstOrDefault(),
            { } other => throw new CheckpointException(
                $"expected a text or a list as 'chat_template', but got {JsonFile.Describe(other.ValueKind)}.", path),
        };
    }
}
