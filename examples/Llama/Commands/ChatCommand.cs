using System.CommandLine;
using System.Diagnostics;
using System.Globalization;
using System.Text.Json;
using Mustafar.Models.Chat;
using Mustafar.Models.Llama;

namespace Mustafar.Examples.Llama.Commands;

/// <summary>A chat over one cache; each line of input is a turn.</summary>
internal sealed class ChatCommand : LlamaCommand
{
    private readonly CommandInput _input;
    private readonly Option<string?> _system = new("--system") { Description = "System message at the start of the chat.", HelpName = "TEXT" };
    private readonly Option<string?> _template = new("--chat-template")
    {
        Description = $"Chat template to use instead of the checkpoint's default: {string.Join(", ", ChatTemplate.BuiltInNames)}, "
            + "a named template of the checkpoint, or a Jinja file.",
        HelpName = "NAME|FILE",
    };

    private readonly Option<string?> _variables = new("--chat-template-kwargs")
    {
        Description = "Further variables for the chat template, as a JSON object such as {\"enable_thinking\": false}.",
        HelpName = "JSON",
    };

    private readonly Option<string?> _load = new("--load") { Description = "Continue a chat that --save wrote.", HelpName = "FILE" };
    private readonly Option<string?> _save = new("--save") { Description = "When the chat ends, write it and its compressed cache to a file.", HelpName = "FILE" };

    private readonly GenerationOptions _generation = new(maxTokens: 512);

    public ChatCommand(CommandInput input)
        : base("chat", $"Chat: each line of input is a turn. {ChatLoop.Reset} starts a new chat; {ChatLoop.Exit} or Ctrl-C quits.")
    {
        _input = input;
        Add([_system, _template, _variables, _load, _save, .. _generation.All]);
    }

    protected override void Run(ParseResult arguments, CommonSettings settings, ConsoleOutput output)
    {
        SamplingParameters sampling = _generation.Sampling(arguments, settings.Model, output);
        int maxTokens = Positive(arguments, _generation.MaxTokens);
        (string? load, string? save) = (arguments.GetValue(_load), arguments.GetValue(_save));
        CheckFiles(settings, load, save);
        ChatTemplate template = LoadTemplate(settings.Model, arguments.GetValue(_template));
        IReadOnlyDictionary<string, object?>? variables = arguments.GetValue(_variables) is string json ? ReadVariables(json) : null;
        using ModelSession session = ModelSession.Load(settings, output);
        ChatModel model = new(session.Language, template);
        ChatTurn[] opening = arguments.GetValue(_system) is string system ? [new ChatTurn(ChatRoles.System, system)] : [];
        using ModelCache cache = session.NewCache();
        Stopwatch watch = Stopwatch.StartNew();
        using Conversation conversation = load is null
            ? new Conversation(model, cache) { TemplateVariables = variables }
            : Conversation.Load(load, model, cache, variables);
        double? restoreSeconds = load is null ? null : watch.Elapsed.TotalSeconds;
        if (restoreSeconds is double seconds)
        {
            output.WriteLine(string.Create(
                CultureInfo.InvariantCulture,
                $"--- {conversation.Turns.Count} turns, {conversation.CachedTokens} cached tokens, restored in {seconds:F3} s"));
        }

        ChatLoop loop = new(conversation, opening, sampling, maxTokens, session.Model.Config.MaxPositions);
        try
        {
            loop.Run(_input, output);
        }
        finally
        {
            // However the chat ended. An empty chat that was interrupted does not replace a saved one.
            if (save is not null && !(output.Interrupted.IsCancellationRequested && conversation.Turns.Count == 0))
            {
                Save(conversation, save);
            }
        }

        output.WriteJson(new Result(
            RunReport.Of(session), restoreSeconds, loop.Exchanges, MemoryReport.Of(conversation.CachedTokens, conversation.Memory)));
        output.Interrupted.ThrowIfCancellationRequested();
    }

    private ChatTemplate LoadTemplate(string directory, string? name)
    {
        try
        {
            return ChatTemplate.Load(directory, name);
        }
        catch (ArgumentException exception)
        {
            throw new CommandException($"{_template.Name}: {ErrorMessage.Of(exception)}");
        }
    }

    private Dictionary<string, object?> ReadVariables(string json)
    {
        try
        {
            using JsonDocument document = JsonDocument.Parse(json);
            return TemplateVariables.FromJson(document.RootElement);
        }
        catch (JsonException)
        {
            throw new CommandException($"{_variables.Name}: expected a JSON object, but got {json}.");
        }
        catch (ArgumentException exception)
        {
            throw new CommandException($"{_variables.Name}: {ErrorMessage.Of(exception)}");
        }
    }

    private static void Save(Conversation conversation, string path)
    {
        try
        {
            conversation.Save(path);
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            throw new CommandException($"--save: could not write the chat to {path}: {exception.Message}");
        }
    }

    private sealed record Result(RunReport Run, double? RestoreSeconds, IReadOnlyList<ChatExchange> Exchanges, MemoryReport Cache);
}
