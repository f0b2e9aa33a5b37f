import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Base64;
import java.util.List;
import java.util.concurrent.Callable;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Collectors;

/**
 * The HTTP client that comes with Java, as it is: it offers h2c with every request.
 *
 * <p>{@code java Tour.java BASE MODEL IMAGE KEY} prints a line of JSON for each check.
 */
public final class Tour {
    private static final HttpClient CLIENT = HttpClient.newHttpClient();
    private static String base;
    private static String model;
    private static String key;
    private static String image;

    public static void main(String[] arguments) throws Exception {
        base = arguments[0];
        model = arguments[1];
        image = Base64.getEncoder().encodeToString(Files.readAllBytes(Path.of(arguments[2])));
        key = arguments[3];
        check("image", Tour::image);
        check("stream", Tour::stream);
        check("tool", Tour::tool);
        check("structured", Tour::structured);
    }

    private static String image() throws Exception {
        String content = text(post(shown("What color is the circle?", "")));
        require(content.toLowerCase().contains("red"), "the answer is " + content);
        return content;
    }

    private static String stream() throws Exception {
        HttpRequest request = request(shown("Describe the image.", ", \"stream\": true"));
        HttpResponse<java.util.stream.Stream<String>> answer =
            CLIENT.send(request, HttpResponse.BodyHandlers.ofLines());
        List<String> events = answer.body().filter(line -> line.startsWith("data: ")).collect(Collectors.toList());
        require(events.get(events.size() - 1).equals("data: [DONE]"), "the stream has no end");
        require(events.size() > 3, events.size() + " events");
        return events.size() + " events";
    }

    private static String tool() throws Exception {
        String schema = "{\"type\": \"object\", \"properties\": {\"close\": {\"type\": \"boolean\"}}, "
            + "\"required\": [\"close\"], \"additionalProperties\": false}";
        String tools = ", \"tool_choice\": \"required\", \"tools\": [{\"type\": \"function\", \"function\": "
            + "{\"name\": \"look\", \"description\": \"Look again.\", \"parameters\": " + schema + "}}]";
        String body = post(shown("What color is the circle?", tools));
        Matcher arguments = Pattern.compile("\"arguments\":\"(\\{.*?\\})\"").matcher(body);
        require(arguments.find(), "no call in " + body);
        require(arguments.group(1).matches(".*(true|false).*"), "called with " + arguments.group(1));
        return "look(" + arguments.group(1).replace("\\\"", "\"") + ")";
    }

    private static String structured() throws Exception {
        String schema = "{\"type\": \"object\", \"properties\": {\"color\": {\"enum\": [\"red\", \"green\"]}}, "
            + "\"required\": [\"color\"], \"additionalProperties\": false}";
        String format = ", \"response_format\": {\"type\": \"json_schema\", \"json_schema\": "
            + "{\"name\": \"scene\", \"strict\": true, \"schema\": " + schema + "}}";
        String content = text(post(shown("What color is the circle?", format)));
        require(content.contains("color"), "the answer is " + content);
        return content;
    }

    private static String shown(String question, String more) {
        return "{\"model\": \"" + model + "\", \"temperature\": 0, \"max_tokens\": 256, \"messages\": "
            + "[{\"role\": \"user\", \"content\": [{\"type\": \"text\", \"text\": \"" + question + "\"}, "
            + "{\"type\": \"image_url\", \"image_url\": {\"url\": \"data:image/png;base64," + image + "\"}}]}]"
            + more + "}";
    }

    private static HttpRequest request(String body) {
        return HttpRequest.newBuilder(URI.create(base + "/v1/chat/completions"))
            .header("content-type", "application/json")
            .header("authorization", "Bearer " + key)
            .POST(HttpRequest.BodyPublishers.ofString(body))
            .build();
    }

    private static String post(String body) throws Exception {
        HttpResponse<String> answer = CLIENT.send(request(body), HttpResponse.BodyHandlers.ofString());
        require(answer.statusCode() == 200, answer.statusCode() + ": " + answer.body());
        return answer.body();
    }

    private static String text(String body) {
        Matcher content = Pattern.compile("\"content\":\"((?:[^\"\\\\]|\\\\.)*)\"").matcher(body);
        require(content.find(), "no content in " + body);
        return content.group(1);
    }

    private static void require(boolean holds, String otherwise) {
        if (!holds) {
            throw new IllegalStateException(otherwise);
        }
    }

    private static void check(String name, Callable<String> step) {
        boolean ok = true;
        String detail;
        try {
            detail = step.call();
        } catch (Exception error) {
            ok = false;
            detail = String.valueOf(error);
        }
        String quoted = detail.replace("\\", "\\\\").replace("\"", "\\\"").replaceAll("\\s+", " ");
        System.out.println("{\"check\": \"" + name + "\", \"ok\": " + ok + ", \"detail\": \"" + quoted + "\"}");
    }
}
