using Mustafar.Models.Chat.Jinja;
using Mustafar.Models.Checkpoint;

namespace Mustafar.Models.Chat;

/// <summary>The format of a model's chats: the checkpoint's Jinja template, rendered as in transformers.</summary>
public sealed class ChatTemplate
{
    private readonly JinjaTemplate _template;
    private readonly Dictionary<string, object?> _specialTokens;

    private ChatTemplate(ChatTemplateText text, Dictionary<string, object?> specialTokens)
    {
        Origin = text.Origin;
        Text = text.Text;
        RequiredTokens = text.RequiredTokens;
        _specialTokens = specialTokens;
        try
        {
            _template = JinjaTemplate.Parse(text.Text);
        }
        catch (JinjaException exception)
        {
            throw Unsupported(exception);
        }
    }

    /// <summary>Names of the built-in templates.</summary>
    public static IReadOnlyCollection<string> BuiltInNames => ChatTemplateFiles.BuiltInNames;

    /// <summary>Its origin: a file, or a built-in template's name.</summary>
    public string Origin { get; }

    /// <summary>The program.</summary>
    internal string Text { get; }

    /// <summary>Tokens that it needs.</summary>
    internal IReadOnlyList<string> RequiredTokens { get; }

    /// <summary>Reads a template: the checkpoint's own from chat_template.jinja, additional_chat_templates or tokenizer_config.json, or
    /// another one.</summary>
    /// <param name="directory">The checkpoint.</param>
    /// <param name="name">A template of the checkpoint or one of <see cref="BuiltInNames"/> by name, or the path of a Jinja file; the
    /// checkpoint's default if null.</param>
    /// <exception cref="UnsupportedModelException">The checkpoint has no template, or one that is not valid or not supported.</exception>
    /// <exception cref="CheckpointException">A file is damaged.</exception>
    /// <exception cref="ArgumentException">There is no template of this name.</exception>
    public static ChatTemplate Load(string directory, string? name = null)
    {
        ArgumentNullException.ThrowIfNull(directory);
        return new ChatTemplate(ChatTemplateFiles.Find(directory, name), SpecialTokenVariables.Read(directory));
    }

    /// <summary>Renders a chat.</summary>
    /// <param name="turns">The chat.</param>
    /// <param name="addGenerationPrompt">Whether the beginning of the model's reply follows.</param>
    /// <param name="variables">Further variables for the template, such as <c>enable_thinking</c>: strings, numbers, true and false, null,
    /// JSON, lists and dictionaries.</param>
    /// <param name="cancellationToken">Cancels the call.</param>
    /// <exception cref="ArgumentException">The template refuses the turns, or a variable has another type or is one that the chat
    /// itself sets.</exception>
    /// <exception cref="UnsupportedModelException">The template can't be rendered.</exception>
    /// <exception cref="OperationCanceledException">The call was cancelled.</exception>
    public string Render(
        IReadOnlyList<ChatTurn> turns,
        bool addGenerationPrompt = true,
        IReadOnlyDictionary<string, object?>? variables = null,
        CancellationToken cancellationToken = default)
    {
        ArgumentNullException.ThrowIfNull(turns);
        Dictionary<string, object?> values = new(_specialTokens)
        {
            ["tools"] = null,
            ["documents"] = null,
        };
        foreach ((string name, object? value) in variables ?? new Dictionary<string, object?>())
        {
            values[name] = TemplateVariables.ValueOf(name, value);
        }

        values[TemplateVariables.Messages] = new JinjaList([.. turns.Select(MessageOf)]);
        values[TemplateVariables.AddGenerationPrompt] = addGenerationPrompt;
        try
        {
            return _template.Render(values, DateTime.Now, cancellationToken);
        }
        catch (TemplateRaisedException exception)
        {
            throw new ArgumentException($"The chat template does not accept the messages: {exception.Message}", nameof(turns), exception);
        }
        catch (JinjaException exception)
        {
            throw Unsupported(exception);
        }
    }

    private static JinjaDict MessageOf(ChatTurn turn)
    {
        List<(string, object?)> items = [("role", turn.Role), ("content", turn.Content)];
        if (turn.ReasoningContent is not null)
        {
            items.Add(("reasoning_content", turn.ReasoningContent));
        }

        return JinjaValue.Dict(items);
    }

    private UnsupportedModelException Unsupported(JinjaException exception)
    {
        string line = exception.Line > 0 ? $"line {exception.Line}: " : "";
        return new UnsupportedModelException(
            $"the chat template can't be rendered: {line}{exception.Message.TrimEnd('.')}. {ChatTemplateFiles.HowToChoose}", Origin, exception);
    }
}
